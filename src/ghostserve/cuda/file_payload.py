"""The payload of a store on a disk, as the device sees it: through a mirror of the ring in pinned host memory."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ghostserve.cuda.payload import Runs
from ghostserve.cuda.ring import FRAMES, Ring
from ghostserve.cuda.runtime import Stream
from ghostserve.parity.file_store import FileStore
from ghostserve.parity.slots import SlotTable

__all__ = ["FilePayload"]


class FilePayload:
    """See `Payload`. The file is read and written by the calling thread, never by a stream: nothing waits for the disk
    but a flush or a rebuild.

    Bytes on their way from or to a place in the ring lie at the same place in the mirror. So a tile may have them there
    for as long as its frame is its own, and a flush has no more tiles under way than the ring has frames.
    """

    turns = FRAMES
    address = None

    def __init__(self, ring: Ring, store: FileStore) -> None:
        """Takes as much pinned host memory as the ring has on the device, which goes with the ring."""
        g = store.geometry
        self.slot_bytes, self.row_bytes = g.slot_bytes, g.num_parity * g.slot_bytes
        self._ring, self._store = ring, store
        self._mirror = ring.pin(ring.nbytes)

    def write(self, runs: Runs, source: int, stream: Stream) -> None:
        """As far as the mirror."""
        nbytes = sum(count for _, _, count in runs) * self.row_bytes
        self._ring.runtime.copy(_address(self._at(source, nbytes)), source, nbytes, stream)

    def commit(self, epoch: int, slots: SlotTable, sums: NDArray[np.uint64], source: int) -> None:
        """From the mirror to the file; `settle` commits it. Raises `OSError` where the disk refuses."""
        rows = self._at(source, len(slots) * self.row_bytes)
        self._store.write(epoch, slots, rows.reshape(len(slots), -1, self.slot_bytes), sums)

    def settle(self, epoch: int) -> None:
        """All of the flush reaches the disk, then it is committed."""
        self._store.settle(epoch)

    def read(self, runs: Runs, first: int, shards: int, target: int, stream: Stream) -> None:
        """Reads the file at once, and has the stream copy from the mirror. Raises `OSError` where the disk refuses."""
        count = sum(count for _, _, count in runs)
        rows = self._at(target, count * shards * self.slot_bytes)
        self._store.read_shards(runs, first, rows.reshape(count, shards, self.slot_bytes))
        self._ring.runtime.copy(target, _address(rows), rows.nbytes, stream)

    def close(self) -> None:
        """Nothing: the mirror is the ring's."""

    def _at(self, place: int, nbytes: int) -> NDArray[np.uint8]:
        """The bytes of the mirror that belong to a place in the ring."""
        start = place - self._ring.address
        return self._mirror[start : start + nbytes]


def _address(array: NDArray[Any]) -> int:
    return int(array.__array_interface__["data"][0])
