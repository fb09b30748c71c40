"""Stores that break one promise each."""

from collections.abc import Sequence

import numpy as np

from ghostserve.parity import ParityStore, SlotRange, StoreGeometry, header
from ghostserve.parity.file_store import FileStore
from ghostserve.parity.memory import SharedRegion
from ghostserve.parity.records import IDENTITY
from ghostserve.parity.store import Store


class Trusting(ParityStore):
    """Whatever was never written counts."""

    def committed_slots(self, ranges):
        return np.ones_like(super().committed_slots(ranges))


class NeverCommits(ParityStore):
    def _recording(self, ranges, rows, checksums):
        yield next(super()._recording(ranges, rows, checksums))


class ShardsSwapped(ParityStore):
    def parity_shard(self, ranges, index):
        return super().parity_shard(ranges, self.geometry.num_parity - 1 - index)


class SortsRanges(ParityStore):
    """Reads in the order of the places."""

    def payload(self, ranges):
        asked = [ranges] if isinstance(ranges, SlotRange) else sorted(ranges, key=lambda r: r.parity_block)
        return super().payload(asked)


class WritesNothingAsAll(ParityStore):
    """No ranges are taken for the whole block."""

    def write(self, epoch, ranges, parity, checksums):
        if not len(parity):
            self._records[:, -1] = 0
        else:
            super().write(epoch, ranges, parity, checksums)


class IgnoresGeneration(ParityStore):
    def _identities(self, ranges):
        return super()._identities(ranges) & np.uint64(0xFFFFFFFF)


class IgnoresBlock(ParityStore):
    def _identities(self, ranges):
        return super()._identities(ranges) & ~np.uint64(0xFFFFFFFF)


class KeepsGenerations(ParityStore):
    """A newer generation does not take the older one's records away: it is not even written."""

    def write(self, epoch, ranges, parity, checksums):
        asked = [ranges] if isinstance(ranges, SlotRange) else ranges
        rows = self.store_rows(asked)
        if not np.any(self._records[rows, IDENTITY]):
            super().write(epoch, ranges, parity, checksums)


class WholeBlocks(ParityStore):
    """Clears the whole block of a slot that is written."""

    def _clearing(self, rows):
        places = np.arange(rows.start, rows.stop) if isinstance(rows, slice) else rows
        size = self.geometry.block_size
        all_of = np.unique(places // size * size)[:, None] + np.arange(size)
        return super()._clearing(all_of.reshape(-1))


class Overlapping(ParityStore):
    """Blocks stand one slot too close."""

    def _rows(self, ranges):
        rows = super()._rows(ranges)
        places = np.arange(rows.start, rows.stop) if isinstance(rows, slice) else rows
        return places - places // self.geometry.block_size


class KeepsBuffers(FileStore):
    """Copies what it is given only when the flush ends."""

    def write(self, epoch, ranges, parity, checksums):
        self.later = [*self.__dict__.get("later", []), (epoch, ranges, parity, checksums)]

    def settle(self, epoch):
        for written in self.__dict__.pop("later", []):
            super().write(*written)
        super().settle(epoch)


class SettlesBegun(ParityStore):
    """Commits at the end of a flush what was begun by somebody else."""

    def begin(self, epoch, ranges):
        self.__dict__.setdefault("begun", []).append(self._records[self._rows([ranges])].copy())
        self.where = ranges
        super().begin(epoch, ranges)

    def settle(self, epoch):
        for records in self.__dict__.pop("begun", []):
            self._records[self._rows([self.where])] = records


class GoesBack(ParityStore):
    def advance(self, epoch):
        self._header[header.EPOCH] = epoch


class AcceptsOldEpochs(ParityStore):
    def _check_epoch(self, epoch):
        if epoch > self.epoch:
            super()._check_epoch(epoch)


class AcceptsLaterEpochs(ParityStore):
    def _check_epoch(self, epoch):
        if epoch < self.epoch:
            super()._check_epoch(epoch)


class ChecksOnce(ParityStore):
    """Does not look again once the payload is copied."""

    def write(self, epoch, ranges, parity, checksums):
        self._check_epoch(epoch)
        asked = [ranges] if isinstance(ranges, SlotRange) else ranges
        for store in self._stores(asked, parity, checksums):
            store.run()


class SettlesUnderAnyEpoch(FileStore):
    """What an older epoch wrote is committed by whoever settles next."""

    def settle(self, epoch):
        self._written = [(epoch, records) for _, records in self._written]
        super().settle(self.epoch)

    def _check_epoch(self, epoch):
        return


class Forgets(ParityStore):
    """Attaching gives a copy of what was there."""

    @classmethod
    def attach(cls, fd, geometry):
        old = ParityStore.attach(fd, geometry)
        new = cls.create(geometry, old.epoch)
        new.region.array[:] = old.region.array
        old.close()
        return new


class ClearsOnClose(ParityStore):
    """Takes along what it has when its maker goes."""

    def close(self):
        if hasattr(self, "_records"):
            self._records[:] = 0
        super().close()


class ClosesAgain(ParityStore):
    """The second time it clears what others still use."""

    def close(self):
        if hasattr(self, "closed"):
            self.closed[:] = 0
        self.closed = self._records


class ClearsNothing(ParityStore):
    """Neither a write nor `begin` takes the commit word away before."""

    def _clearing(self, rows):
        return Store(self._records[:, -1], np.empty(0, np.int64), np.zeros((), np.uint64))


class CommitsFirst(ParityStore):
    """The records before the payload."""

    def write(self, epoch, ranges, parity, checksums):
        asked = [ranges] if isinstance(ranges, SlotRange) else ranges
        self._check_epoch(epoch)
        clear, payload, *records = self._stores(asked, parity, checksums)
        for store in (clear, *records, payload):
            store.run()


class SealsByHalves(ParityStore):
    """Commits the slots, then puts the payload and at last the checksums in."""

    def write(self, epoch, ranges, parity, checksums):
        asked = [ranges] if isinstance(ranges, SlotRange) else ranges
        super().write(epoch, ranges, parity, np.zeros(checksums.shape, np.uint64))
        super().write(epoch, asked, parity, checksums)


class NoSecondWrite(ParityStore):
    """Slots that lost their commit word can't be written again."""

    def write(self, epoch, ranges, parity, checksums):
        asked = [ranges] if isinstance(ranges, SlotRange) else ranges
        if self.epoch == epoch and epoch > 3:
            return
        super().write(epoch, asked, parity, checksums)


class TablesElsewhere(ParityStore):
    """Begins the slots of a table one row further on."""

    def begin(self, epoch, ranges):
        super().begin(epoch, ranges if not hasattr(ranges, "row") else self.table([SlotRange(0, 0, 1, 0, 1)]))


class AddressElsewhere(ParityStore):
    @property
    def payload_address(self):
        return super().payload_address - 4096


class Wraps(ParityStore):
    """Slots that do not exist are taken for others."""

    def _rows(self, ranges: Sequence[SlotRange]):
        g = self.geometry
        fit = [r.part(max(0, r.start), min(r.stop, g.block_size)) for r in ranges]
        return super()._rows(
            [SlotRange(r.block, 0, r.parity_block % g.num_parity_blocks, r.start, r.stop) for r in fit]
        )

    def _identities(self, ranges):
        return np.zeros(sum(r.stop - r.start for r in ranges), np.uint64)


class AnyShape(ParityStore):
    """Stretches parity that is too short."""

    def _check_parity(self, ranges, parity):
        return

    def _stores(self, ranges, parity, checksums):
        g = self.geometry
        whole = np.resize(parity, (sum(r.stop - r.start for r in ranges), g.num_parity, g.slot_bytes))
        return super()._stores(ranges, whole, checksums)


class AnyChecksums(ParityStore):
    def _recording(self, ranges, rows, checksums):
        g, count = self.geometry, len(self._records[rows])
        return super()._recording(ranges, rows, np.resize(checksums, (count, g.num_data + g.num_parity)))


class AttachesAnything(ParityStore):
    @classmethod
    def attach(cls, fd, geometry):
        return cls.create(geometry)


class Shrinks(ParityStore):
    """Where there is no room it makes a smaller one."""

    @classmethod
    def create(cls, geometry: StoreGeometry, epoch: int = 1) -> ParityStore:
        return ParityStore.create(StoreGeometry(1, 1, 1, 1, 8) if geometry.slot_bytes > 1 << 40 else geometry, epoch)


class Readable(ParityStore):
    """Anybody may open it."""

    def __init__(self, region: SharedRegion, geometry: StoreGeometry) -> None:
        import os

        os.fchmod(region.fd, 0o644)
        super().__init__(region, geometry)
