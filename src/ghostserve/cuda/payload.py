"""The parity store's payload as the device sees it: registered host memory, copied to and from row by row."""

from ghostserve.cuda.host import PIECE_BYTES, RegisteredRegion
from ghostserve.cuda.runtime import Runtime, Stream
from ghostserve.parity.store import ParityStore

__all__ = ["StorePayload"]


class StorePayload:
    """Pins a store's payload for a device, until `close`.

    Row r (see `ParityStore.store_rows`) is `row_bytes` long: K parity shards of `slot_bytes`, one after the other.
    """

    def __init__(self, runtime: Runtime, store: ParityStore, piece_bytes: int = PIECE_BYTES) -> None:
        """Pinning takes the pages that the store has not touched yet: all of the budget, now. Raises `CudaError`.

        `piece_bytes`: as `RegisteredRegion`.
        """
        g = store.geometry
        self.slot_bytes, self.row_bytes = g.slot_bytes, g.num_parity * g.slot_bytes
        self._runtime = runtime
        self._memory = RegisteredRegion(
            runtime, store.region, offset=g.payload_offset, nbytes=g.payload_bytes, piece_bytes=piece_bytes
        )
        self.address = self._memory.address

    def write(self, row: int, count: int, source: int, stream: Stream) -> None:
        """Copy `count` whole rows from device memory to rows `row`, `row` + 1, ..."""
        self._copy(row, count, source, stream, write=True)

    def read(self, row: int, count: int, first: int, shards: int, target: int, stream: Stream) -> None:
        """Copy parity shards `first`..`first + shards - 1` of `count` rows to device memory.

        There a row has just these: `shards * slot_bytes` bytes.
        """
        width = shards * self.slot_bytes
        if width == self.row_bytes:
            self._copy(row, count, target, stream, write=False)
            return
        source = self.address + row * self.row_bytes + first * self.slot_bytes
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
        """Unpin; nothing may be under way. Idempotent."""
        self._memory.close()

    def _copy(self, row: int, count: int, device: int, stream: Stream, *, write: bool) -> None:
        host, nbytes = self.address + row * self.row_bytes, count * self.row_bytes
        pieces = [(host, nbytes)] if len(self._memory.pieces) == 1 else self._memory.split(host, nbytes)
        for start, size in pieces:
            there = device + start - host
            self._runtime.copy(start if write else there, there if write else start, size, stream)
