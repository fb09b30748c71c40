"""The parity store: parity and its records in host memory that outlives every worker."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ghostserve.errors import StaleEpochError
from ghostserve.parity import header
from ghostserve.parity.geometry import StoreGeometry
from ghostserve.parity.memory import SharedRegion
from ghostserve.parity.ranges import SlotRange, num_slots, slot_numbers
from ghostserve.parity.records import IDENTITY, SEAL, are_committed, have_checksums, identity, seal
from ghostserve.parity.slots import SlotTable

__all__ = ["ParityStore", "Store"]

Rows = slice | NDArray[np.int64]
Slots = SlotRange | Sequence[SlotRange] | SlotTable


class Store(NamedTuple):
    """One assignment to shared memory, `target[rows] = source`; tests cut writes between and inside them."""

    target: NDArray[Any]
    rows: Rows
    source: NDArray[Any]

    def run(self) -> None:
        self.target[self.rows] = self.source


class ParityStore:
    """Parity of the cache's slots, token-major [parity_block][slot][K][slot_bytes], and a record a slot.

    The coordinator makes it, workers attach. A slot counts as committed only while its record is whole and
    names the generation that is asked for; what any torn write leaves behind is "not committed".
    """

    def __init__(self, region: SharedRegion, geometry: StoreGeometry) -> None:
        """View `region` as a store; use `create` or `attach`."""
        self.region = region
        self.geometry = geometry
        self.on_stage: Callable[[str], None] = lambda stage: None
        """Told how far a `write` has come: "cleared", "payload", "record" (not sealed yet). For failpoints."""
        g = geometry
        array = region.array
        self._header = array[: header.WORDS * 8].view(np.uint64)
        records = array[g.records_offset : g.records_offset + g.record_bytes].view(np.uint64)
        self._records = records.reshape(g.num_slots, g.record_words)
        self._payload = self._view_payload()

    @staticmethod
    def region_bytes(geometry: StoreGeometry) -> int:
        """Bytes of shared memory that a store of this geometry takes."""
        return geometry.total_bytes

    @classmethod
    def create(cls, geometry: StoreGeometry, epoch: int = 1) -> "ParityStore":
        """A new, empty store. Raises `MemoryBudgetError` if the host can't hold it."""
        region = SharedRegion.create("ghostserve-parity", cls.region_bytes(geometry))
        store = cls(region, geometry)
        header.write_header(store._header, geometry, epoch)
        return store

    @classmethod
    def attach(cls, fd: int, geometry: StoreGeometry) -> "ParityStore":
        """The store behind `fd` (duplicated); `StoreMismatchError` if it is not one of this geometry."""
        region = SharedRegion.attach(fd, cls.region_bytes(geometry))
        try:
            store = cls(region, geometry)
            header.check_header(store._header, geometry)
        except BaseException:
            region.close()
            raise
        return store

    @property
    def epoch(self) -> int:
        """The group's present epoch, read from the header that all processes share."""
        return int(self._header[header.EPOCH])

    def advance(self, epoch: int) -> None:
        """Fence: from now on writes of older epochs are refused. Coordinator only; the epoch never goes back.

        Raises `StaleEpochError` for an epoch below the present one.
        """
        if epoch < self.epoch:
            raise StaleEpochError(found=self.epoch, expected=epoch)
        self._header[header.EPOCH] = epoch

    def write(
        self,
        epoch: int,
        ranges: SlotRange | Sequence[SlotRange],
        parity: NDArray[np.uint8],
        checksums: NDArray[np.uint64],
    ) -> None:
        """Commit the parity of all slots of `ranges` (S of them).

        `parity`: uint8 (S, K, slot_bytes); `checksums`: uint64 (S, N+K), data shards first. Raises
        `StaleEpochError` if the group has left `epoch`: then nothing is committed by this call.

        The same as `begin`, the payload, `commit`, for parity that lies in host memory.
        """
        asked = [ranges] if isinstance(ranges, SlotRange) else ranges
        clear, payload, *records = self._stores(asked, parity, checksums)
        self._check_epoch(epoch)
        clear.run()
        self.on_stage("cleared")
        payload.run()
        self.on_stage("payload")
        # Again: the fence may have fallen while the payload was copied.
        self._check_epoch(epoch)
        self._run(records)

    def settle(self, epoch: int) -> None:
        """The end of a flush: whatever `write` could not commit at once is committed under `epoch` when this returns.

        Nothing to do here; raises what `commit` and the payload's medium raise.
        """

    @property
    def fds(self) -> tuple[int, ...]:
        """The descriptors by which another process attaches."""
        return (self.region.fd,)

    def begin(self, epoch: int, ranges: Slots) -> None:
        """From now on the slots of `ranges` are not committed: whoever writes their payload may begin.

        For writers that the store does not see, as a device that copies to `payload_address`. Raises
        `StaleEpochError` if the group has left `epoch`.
        """
        clear = self._clearing(self._rows(_as_ranges(ranges)))
        self._check_epoch(epoch)
        clear.run()

    def commit(self, epoch: int, ranges: Slots, checksums: NDArray[np.uint64]) -> None:
        """The payload of `ranges` (S slots), begun before, is wholly written: commit it.

        `checksums`: uint64 (S, N+K), data shards first. Raises `StaleEpochError` if the group has left `epoch`: then
        nothing is committed by this call.
        """
        asked = _as_ranges(ranges)
        records = list(self._recording(asked, self._rows(asked), checksums))
        # The fence may have fallen since `begin`.
        self._check_epoch(epoch)
        for store in records:
            store.run()

    @property
    def payload_address(self) -> int:
        """Where the payload begins in this process, page-aligned: parity shard k of the slot with row r (of
        `store_rows`) is the `slot_bytes` at payload_address + (r * K + k) * slot_bytes.
        """
        return int(self._payload.__array_interface__["data"][0])

    def table(self, ranges: Sequence[SlotRange], *, by_row: bool = False) -> SlotTable:
        """The slots of `ranges` as columns; `by_row`: as they lie in the store, not in the order of `ranges`.

        Raises `ValueError` for slots that the store does not have.
        """
        return SlotTable.of(ranges, self.geometry, by_row=by_row)

    def store_rows(self, ranges: Sequence[SlotRange]) -> NDArray[np.int64]:
        """Where the slots of `ranges` stand in the payload, int64 (S,): parity_block * block_size + slot.

        Raises `ValueError` for slots that the store does not have.
        """
        return _places(self._rows(ranges))

    def _stores(
        self, ranges: Sequence[SlotRange], parity: NDArray[np.uint8], checksums: NDArray[np.uint64]
    ) -> Iterator[Store]:
        """The write as the sequence of its stores, in an order that is harmless wherever it ends.

        A slot's commit word is cleared first and set last. Readers in other processes look only after the
        writer has drained or died, and check the payload against its checksums, so program order is all that
        is needed.
        """
        rows = self._rows(ranges)
        self._check_parity(ranges, parity)
        yield self._clearing(rows)
        yield Store(self._payload, rows, parity)
        yield from self._recording(ranges, rows, checksums)

    def _run(self, records: Sequence[Store]) -> None:
        """The stores of `_recording`, of which the last one seals."""
        for store in records[:-1]:
            store.run()
        self.on_stage("record")
        for store in records[-1:]:
            store.run()

    def _check_parity(self, ranges: Sequence[SlotRange] | SlotTable, parity: NDArray[np.uint8]) -> None:
        g = self.geometry
        slots = len(ranges) if isinstance(ranges, SlotTable) else num_slots(ranges)
        shape = (slots, g.num_parity, g.slot_bytes)
        if parity.shape != shape:
            raise ValueError(f"parity has shape {parity.shape}, not {shape}")

    def _view_payload(self) -> NDArray[np.uint8]:
        """The payload, uint8 (slots, K, slot_bytes)."""
        g = self.geometry
        payload = self.region.array[g.payload_offset : g.payload_offset + g.payload_bytes]
        return payload.reshape(g.num_slots, g.num_parity, g.slot_bytes)

    def _clearing(self, rows: Rows) -> Store:
        return Store(self._records[:, SEAL], rows, np.zeros((), dtype=np.uint64))

    def _recording(
        self, ranges: Sequence[SlotRange] | SlotTable, rows: Rows, checksums: NDArray[np.uint64]
    ) -> Iterator[Store]:
        places = _places(rows)
        shape = (places.size, self.geometry.num_data + self.geometry.num_parity)
        if checksums.shape != shape:  # NumPy would give one slot's checksums to all
            raise ValueError(f"checksums have shape {checksums.shape}, not {shape}")
        words = np.empty((places.size, self.geometry.record_words - 1), dtype=np.uint64)
        words[:, : IDENTITY + 1] = checksums
        words[:, IDENTITY + 1] = self._identities(ranges)
        yield Store(self._records[:, :SEAL], rows, words)
        yield Store(self._records[:, SEAL], rows, seal(words, places.astype(np.uint64)))

    def committed(self, block: int, generation: int, parity_block: int) -> NDArray[np.bool_]:
        """Which slots are committed for this generation of this cache block; bool (block_size,)."""
        return self.committed_slots([SlotRange(block, generation, parity_block, 0, self.geometry.block_size)])

    def committed_slots(self, ranges: Slots) -> NDArray[np.bool_]:
        """Which slots of `ranges` are committed; bool (S,)."""
        asked = _as_ranges(ranges)
        return are_committed(self._records, _places(self._rows(asked)), self._identities(asked))

    def matches(self, ranges: Slots, shards: Sequence[int], sums: NDArray[np.uint64]) -> NDArray[np.bool_]:
        """For which slots of `ranges` the recorded checksums of `shards` (P of them) are `sums`, uint64 (S, P).

        bool (S,); only those of committed slots count.
        """
        rows = _places(self._rows(_as_ranges(ranges)))
        if sums.shape != (len(rows), len(shards)):
            raise ValueError(f"checksums have shape {sums.shape}, not {(len(rows), len(shards))}")
        return have_checksums(self._records, rows, np.array(shards, dtype=np.int64), sums)

    def records(self, ranges: Slots) -> NDArray[np.uint64]:
        """The recorded checksums, uint64 (S, N+K), data shards first; only those of committed slots count."""
        return self._records[self._rows(_as_ranges(ranges)), :IDENTITY]

    def payload(self, ranges: SlotRange | Sequence[SlotRange]) -> NDArray[np.uint8]:
        """The parity shards, uint8 (S, K, slot_bytes): a view for one range, a copy for several."""
        return self._payload[self._rows(_as_ranges(ranges))]

    def parity_shard(self, ranges: Sequence[SlotRange], index: int) -> NDArray[np.uint8]:
        """Parity shard `index` (0..K-1), uint8 (S, slot_bytes): a view for one range, a copy for several."""
        return self._payload[:, index][self._rows(ranges)]

    def close(self) -> None:
        """Give up this process's mapping. Idempotent; the memory goes with the last process that maps it."""
        for view in ("_header", "_records", "_payload"):
            vars(self).pop(view, None)  # they would keep the mapping
        self.region.close()

    def _check_epoch(self, epoch: int) -> None:
        found = self.epoch
        if found != epoch:
            raise StaleEpochError(found=found, expected=epoch)

    def _rows(self, ranges: Sequence[SlotRange] | SlotTable) -> Rows:
        """Where the slots of `ranges` stand; a slice for one range, which is then copied in one run."""
        if isinstance(ranges, SlotTable):
            return ranges.row
        g = self.geometry
        for r in ranges:
            if not (0 <= r.parity_block < g.num_parity_blocks and 0 <= r.start <= r.stop <= g.block_size):
                raise ValueError(f"{r} is outside a store of {g.num_parity_blocks} blocks of {g.block_size} slots")
        firsts = np.array([r.parity_block * g.block_size for r in ranges], dtype=np.int64)
        if len(ranges) == 1:
            return slice(int(firsts[0]) + ranges[0].start, int(firsts[0]) + ranges[0].stop)
        return np.repeat(firsts, [r.num_slots for r in ranges]) + slot_numbers(ranges)

    def _identities(self, ranges: Sequence[SlotRange] | SlotTable) -> NDArray[np.uint64]:
        if isinstance(ranges, SlotTable):
            return ranges.identity
        words = np.array([identity(r.block, r.generation) for r in ranges], dtype=np.uint64)
        return np.repeat(words, [r.num_slots for r in ranges])


def _places(rows: Rows) -> NDArray[np.int64]:
    return np.arange(rows.start, rows.stop) if isinstance(rows, slice) else rows


def _as_ranges(ranges: Slots) -> Sequence[SlotRange] | SlotTable:
    return [ranges] if isinstance(ranges, SlotRange) else ranges
