"""A parity store whose payload lies in a file: records in shared memory, bytes on a disk."""

import os
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ghostserve.errors import DiskBudgetError
from ghostserve.parity import header
from ghostserve.parity.geometry import StoreGeometry
from ghostserve.parity.limits import format_bytes
from ghostserve.parity.memory import SharedRegion
from ghostserve.parity.ranges import SlotRange
from ghostserve.parity.slots import SlotTable
from ghostserve.parity.store import ParityStore, Rows, Store

__all__ = ["FileStore"]


class FileStore(ParityStore):
    """As `ParityStore`, but `write` only hands bytes to the file; `settle` puts them on the disk, then commits them.

    One fsync commits all that was written since the last one, so a flush costs one however many tiles it has. Errors
    of the disk are `OSError`s from `write`, `settle` and the reads; nothing that they concern is committed. Not for
    several threads of one process.
    """

    def __init__(self, region: SharedRegion, geometry: StoreGeometry, file: int) -> None:
        """`file`: a descriptor that this store owns from now on; use `create` or `attach_file`."""
        super().__init__(region, geometry)
        self._file = file
        self._written: list[tuple[int, list[Store]]] = []

    @staticmethod
    def region_bytes(geometry: StoreGeometry) -> int:
        return geometry.payload_offset

    @classmethod
    def create_in(cls, folder: str, geometry: StoreGeometry, epoch: int = 1) -> "FileStore":
        """A new, empty store with its payload in `folder`, in a file without a name: it goes with its last user.

        The whole space is taken now. Raises `DiskBudgetError` if the disk has less than that or refuses.
        """
        try:
            file = os.open(folder, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise DiskBudgetError(
                f"no file can be made in {folder!r}: {error.strerror}; name another folder"
            ) from error
        try:
            os.posix_fallocate(file, 0, geometry.payload_bytes)
        except OSError as error:
            os.close(file)
            wanted = format_bytes(geometry.payload_bytes)
            raise DiskBudgetError(
                f"{folder!r} can't hold {wanted} of copies ({error.strerror}): lower kv_cache_memory or parity_memory,"
                " or name another folder"
            ) from error
        try:
            region = SharedRegion.create("ghostserve-records", cls.region_bytes(geometry))
        except BaseException:
            os.close(file)
            raise
        store = cls(region, geometry, file)
        header.write_header(store._header, geometry, epoch)
        return store

    @classmethod
    def attach_file(cls, fd: int, file: int, geometry: StoreGeometry) -> "FileStore":
        """The store behind `fd` and `file` (both duplicated); `StoreMismatchError` if it is not of this geometry."""
        region = SharedRegion.attach(fd, cls.region_bytes(geometry))
        own = os.dup(file)
        try:
            store = cls(region, geometry, own)
            header.check_header(store._header, geometry)
        except BaseException:
            region.close()
            os.close(own)
            raise
        return store

    @property
    def fds(self) -> tuple[int, ...]:
        return (self.region.fd, self._file)

    def write(
        self, epoch: int, ranges: SlotRange | Sequence[SlotRange] | SlotTable, parity: NDArray[np.uint8],
        checksums: NDArray[np.uint64],
    ) -> None:  # fmt: skip
        """Hand the slots of `ranges` to the file; they are not committed before `settle`. See `ParityStore.write`.

        Where the disk refuses, nothing that was written since the last `settle` will be committed: the flush failed.
        """
        asked = [ranges] if isinstance(ranges, SlotRange) else ranges
        rows = self._rows(asked)
        self._check_parity(asked, parity)
        records = list(self._recording(asked, rows, checksums))  # before anything changes: it raises for what can't be
        self.begin(epoch, asked)
        self.on_stage("cleared")
        try:
            self._pwrite(rows, parity)
        except OSError:
            self._written.clear()
            raise
        self.on_stage("payload")
        self._written.append((epoch, records))

    def settle(self, epoch: int) -> None:
        """All that was written under `epoch` reaches the disk, then it is committed; see `ParityStore.settle`."""
        written, self._written = self._written, []
        mine = [records for at, records in written if at == epoch]
        if not mine:
            return
        os.fdatasync(self._file)
        for records in mine:
            # The fence may have fallen since `write`.
            self._check_epoch(epoch)
            self._run(records)

    def payload(self, ranges: SlotRange | Sequence[SlotRange]) -> NDArray[np.uint8]:
        """The parity shards, uint8 (S, K, slot_bytes), read from the file."""
        return self._pread(self._rows([ranges] if isinstance(ranges, SlotRange) else ranges))

    def parity_shard(self, ranges: Sequence[SlotRange], index: int) -> NDArray[np.uint8]:
        """Parity shard `index`, uint8 (S, slot_bytes), read from the file."""
        runs = [(place, start, stop - start) for start, stop, place in _runs(self._rows(ranges))]
        out = np.empty((sum(count for _, _, count in runs), 1, self.geometry.slot_bytes), dtype=np.uint8)
        self.read_shards(runs, index, out)
        return out[:, 0]

    def read_shards(self, runs: Sequence[tuple[int, int, int]], first: int, out: NDArray[np.uint8]) -> None:
        """Read parity shards from `first` on, as many as `out` has, uint8 (S, shards, slot_bytes), contiguous.

        `runs`: rows that follow each other: (place of the first in `out`, its row in the store, how many).
        """
        whole = out.shape[1] == self.geometry.num_parity
        for place, row, count in runs:
            at = row * self._row_bytes + first * self.geometry.slot_bytes
            if whole:
                self._read_into(out[place : place + count], at)
                continue
            for i in range(count):
                self._read_into(out[place + i], at + i * self._row_bytes)

    @property
    def payload_address(self) -> int:
        raise AttributeError("the payload lies in a file: it has no address")

    def close(self) -> None:
        super().close()
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def _view_payload(self) -> NDArray[np.uint8]:
        return np.empty((0, self.geometry.num_parity, self.geometry.slot_bytes), dtype=np.uint8)

    def _pwrite(self, rows: Rows, parity: NDArray[np.uint8]) -> None:
        for start, stop, first in _runs(rows):
            data = np.ascontiguousarray(parity[first : first + stop - start]).data.cast("B")
            offset = start * self._row_bytes
            while data:
                done = os.pwrite(self._file, data, offset)
                data, offset = data[done:], offset + done

    def _pread(self, rows: Rows) -> NDArray[np.uint8]:
        g = self.geometry
        runs = list(_runs(rows))
        out = np.empty((sum(stop - start for start, stop, _ in runs), g.num_parity, g.slot_bytes), dtype=np.uint8)
        for start, stop, first in runs:
            self._read_into(out[first : first + stop - start], start * self._row_bytes)
        return out

    def _read_into(self, out: NDArray[np.uint8], offset: int) -> None:
        data = out.data.cast("B")
        while data:
            done = os.preadv(self._file, [data], offset)
            if not done:
                raise OSError(f"the file of copies ends at byte {offset}, {len(data)} more were expected")
            data, offset = data[done:], offset + done

    @property
    def _row_bytes(self) -> int:
        return self.geometry.num_parity * self.geometry.slot_bytes


def _runs(rows: Rows) -> list[tuple[int, int, int]]:
    """Neighbouring rows as one piece: (first row, row after the last, index of the first)."""
    if isinstance(rows, slice):
        return [(rows.start, rows.stop, 0)] if rows.stop > rows.start else []
    if not rows.size:
        return []
    cuts = np.flatnonzero(np.diff(rows) != 1) + 1
    firsts = [0, *cuts.tolist()]
    lasts = [*cuts.tolist(), rows.size]
    return [(int(rows[a]), int(rows[b - 1]) + 1, a) for a, b in zip(firsts, lasts, strict=True)]
