"""The parity store's payload as the device sees it: registered host memory, copied to and from row by row."""

from collections.abc import Iterable, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ghostserve.cuda.host import PIECE_BYTES, RegisteredRegion
from ghostserve.cuda.ring import TURNS
from ghostserve.cuda.runtime import Runtime, Stream
from ghostserve.parity.slots import SlotTable
from ghostserve.parity.store import ParityStore

__all__ = ["Payload", "Runs", "StorePayload", "pin_payload"]

Runs = Sequence[tuple[int, int, int]]
"""Rows that follow each other: (place of the first on the device, its row in the store, how many)."""

Copy = tuple[int, int, int]


class Payload(Protocol):
    """Where a store keeps its payload, for flushes and rebuilds.

    Row r (see `ParityStore.store_rows`) is `row_bytes` long: K parity shards of `slot_bytes`, one after the other.
    """

    slot_bytes: int
    row_bytes: int
    turns: int
    """Tiles that a flush may have under way, from `write` to `commit`."""

    @property
    def address(self) -> int | None:
        """Where row 0 begins for kernels that read and write the payload in place; None where they can't."""

    def write(self, runs: Runs, source: int, stream: Stream) -> None:
        """Copy whole rows from the ring, where row p lies at `source` + p * row_bytes, on their way to the store."""

    def commit(self, epoch: int, slots: SlotTable, sums: NDArray[np.uint64], source: int) -> None:
        """What was copied from `source` has arrived: have the store commit it, now or with `settle`.

        Raises what `ParityStore.commit` raises, and `OSError` where the store's medium fails.
        """

    def settle(self, epoch: int) -> None:
        """The end of a flush; see `ParityStore.settle`."""

    def read(self, runs: Runs, first: int, shards: int, target: int, stream: Stream) -> None:
        """Copy parity shards `first`..`first + shards - 1` of the runs' rows to the ring, row p to place p there.

        There a row has just these: `shards * slot_bytes` bytes.
        """

    def close(self) -> None:
        """Nothing may be under way. Idempotent."""


def pin_payload(runtime: Runtime, store: ParityStore, piece_bytes: int = PIECE_BYTES) -> RegisteredRegion:
    """Pin a store's payload, for all devices of this process. Raises `CudaError`."""
    g = store.geometry
    return RegisteredRegion(
        runtime, store.region, offset=g.payload_offset, nbytes=g.payload_bytes, piece_bytes=piece_bytes
    )


class StorePayload:
    """Pins a store's payload for a device, until `close`; see `Payload`."""

    turns = TURNS

    def __init__(
        self,
        runtime: Runtime,
        store: ParityStore,
        piece_bytes: int = PIECE_BYTES,
        pinned: RegisteredRegion | None = None,
    ) -> None:
        """Pinning takes the pages that the store has not touched yet: all of the budget, now. Raises `CudaError`.

        `piece_bytes`: as `RegisteredRegion`. `pinned`: what `pin_payload` gave, for another device of this process;
        it stays its owner's, and copies are still those of `runtime`.
        """
        g = store.geometry
        self.slot_bytes, self.row_bytes = g.slot_bytes, g.num_parity * g.slot_bytes
        self._runtime, self._store = runtime, store
        self._owned = pinned is None
        self._memory = pin_payload(runtime, store, piece_bytes) if pinned is None else pinned
        self.address = self._memory.address

    def write(self, runs: Runs, source: int, stream: Stream) -> None:
        """Copy whole rows from device memory, where row p lies at `source` + p * row_bytes, to those of the store."""
        size = self.row_bytes
        wanted = ((self.address + row * size, source + place * size, count * size) for place, row, count in runs)
        self._runtime.copy_many(self._cut(wanted), stream)

    def commit(self, epoch: int, slots: SlotTable, sums: NDArray[np.uint64], source: int) -> None:
        """At once: the bytes are in the store's own memory."""
        self._store.commit(epoch, slots, sums)

    def settle(self, epoch: int) -> None:
        self._store.settle(epoch)

    def read(self, runs: Runs, first: int, shards: int, target: int, stream: Stream) -> None:
        """See `Payload.read`; to device memory anywhere."""
        width = shards * self.slot_bytes
        if width == self.row_bytes:
            wanted = ((self.address + row * width, target + place * width, count * width) for place, row, count in runs)
            copies = ((device, host, nbytes) for host, device, nbytes in self._cut(wanted))
            self._runtime.copy_many(copies, stream)
            return
        for place, row, count in runs:
            self._read_columns(row, count, first * self.slot_bytes, width, target + place * width, stream)

    def _read_columns(self, row: int, count: int, begin: int, width: int, target: int, stream: Stream) -> None:
        source = self.address + row * self.row_bytes + begin
        span = (count - 1) * self.row_bytes + width
        if len(self._memory.pieces) == 1 or len(list(self._memory.split(source, span))) == 1:
            self._runtime.copy_rows(target, width, source, self.row_bytes, width, count, stream)
            return
        # Across two pieces the copy engine goes only row by row, cut where they meet.
        for _ in range(count):
            at = target
            for start, size in self._memory.split(source, width):
                self._runtime.copy(at, start, size, stream)
                at += size
            source, target = source + self.row_bytes, target + width

    def close(self) -> None:
        """Unpin what is its own; nothing may be under way. Idempotent."""
        if self._owned:
            self._memory.close()

    def _cut(self, copies: Iterable[Copy]) -> Iterable[Copy]:
        """(host, device, nbytes) each, cut where the pieces of the host's memory meet."""
        if len(self._memory.pieces) == 1:
            return copies
        return (
            (start, device + start - host, size)
            for host, device, nbytes in copies
            for start, size in self._memory.split(host, nbytes)
        )
