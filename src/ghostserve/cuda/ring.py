"""The only device memory that protection holds for good: one ring of fixed size, and its way to and from the host.

The ring is cut into frames that are used in turn: while one is computed on, others are copied. A frame has room for
the slot index and the checksums of its slots, and for a row of payload (parity) a slot.
"""

from types import TracebackType

import numpy as np
import torch
from numpy.typing import NDArray

from ghostserve.cuda.arena import tensor_view
from ghostserve.cuda.host import RegisteredRegion
from ghostserve.cuda.runtime import Runtime, Stream
from ghostserve.errors import ConfigError
from ghostserve.parity.limits import format_bytes
from ghostserve.parity.memory import SharedRegion

__all__ = ["MAX_RING_BYTES", "TURNS", "Frames", "Ring"]

MAX_RING_BYTES = 64 << 20
FRAMES = 3
"""Enough that a kernel fills one while another is copied: it is the device that waits for a frame, not the host."""

TURNS = 8
"""Tiles that the host queues before it has to wake up for the first: its wake-ups must not hold the copy engine."""

MAX_FRAME_SLOTS = 4096
INDEX_BYTES = 12  # three int32 a slot
SUM_BYTES = 8
_ALIGNMENT = 16


class Ring:
    """`nbytes` of device memory and as much pinned host memory as its frames' indices and checksums need."""

    def __init__(self, runtime: Runtime, nbytes: int = MAX_RING_BYTES) -> None:
        """Raises `DeviceMemoryError` where the device has no room, `ConfigError` for more than `MAX_RING_BYTES`."""
        if not 0 < nbytes <= MAX_RING_BYTES:
            raise ConfigError(f"a ring of {nbytes} bytes: it must be 1..{MAX_RING_BYTES}")
        self.runtime, self.nbytes = runtime, nbytes
        self._pinned: list[tuple[RegisteredRegion, SharedRegion]] = []
        self._cuts: dict[tuple[int, int, int, int], Frames] = {}
        self.address = runtime.malloc(nbytes)
        self._bytes = tensor_view(runtime, self.address, nbytes)

    def cut(self, row_bytes: int, sums: int, frames: int = FRAMES, turns: int | None = None) -> "Frames":
        """The ring as frames whose slots have `row_bytes` of payload (a multiple of 16, or none) and `sums` checksums.

        `turns`: for how many tiles there is room for index and checksums, at least (and by default) one a frame.
        Raises `ConfigError` where not even one slot fits a frame. Only one cut may be in use at a time.
        """
        turns = frames if turns is None else turns
        if frames < 2 or turns < frames:
            raise ConfigError(f"{frames} frames, {turns} turns: at least 2, and no fewer turns, so that work overlaps")
        key = row_bytes, sums, frames, turns
        if key not in self._cuts:
            self._cuts[key] = Frames(self, *key)
        return self._cuts[key]

    def pin(self, nbytes: int) -> NDArray[np.uint8]:
        """Host memory, uint8 (nbytes,), that copies to and from the device are asynchronous with; until `close`."""
        region = SharedRegion.create("ghostserve-ring", nbytes)
        self._pinned.append((RegisteredRegion(self.runtime, region), region))
        return region.array

    def view(self, offset: int, nbytes: int) -> torch.Tensor:
        """Bytes of the ring, uint8 (nbytes,) on the device."""
        return self._bytes[offset : offset + nbytes]

    def close(self) -> None:
        """Give everything back; nothing may be under way. Idempotent."""
        self._cuts.clear()
        while self._pinned:
            registered, region = self._pinned.pop()
            registered.close()
            region.close()
        if self.address:
            self._bytes = torch.empty(0, dtype=torch.uint8)
            self.runtime.free(self.address)
            self.address = 0

    def __enter__(self) -> "Ring":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Frames:
    """A cut of the ring, with room for `rows` slots in each frame.

    Row r of frame f is row f * rows + r behind `payload`: one token-major shard spans all frames, so kernels are bound
    once for all of them. A tile's index and checksums have a turn's place of their own: index and zeroed checksums go
    up in one copy, and the checksums come down in one.
    """

    def __init__(self, ring: Ring, row_bytes: int, sums: int, frames: int, turns: int) -> None:
        self._ring, self.row_bytes, self.sums, self.frames, self.turns = ring, row_bytes, sums, frames, turns
        control = INDEX_BYTES + SUM_BYTES * sums
        room = ring.nbytes - 2 * _ALIGNMENT * turns
        self.rows = min(MAX_FRAME_SLOTS, room // (frames * row_bytes + turns * control))
        if self.rows < 1:
            raise ConfigError(
                f"the GPU ring of {format_bytes(ring.nbytes)} is too small for {frames} frames of one slot's parity,"
                f" {format_bytes(row_bytes)} each"
            )
        self._control_bytes = _round_up(_round_up(self.rows * INDEX_BYTES, 16) + self.rows * sums * SUM_BYTES)
        self.payload = ring.address + turns * self._control_bytes
        # Up and down apart: a tile's checksums may be on their way while the next index is being written.
        host = ring.pin(2 * turns * self._control_bytes).reshape(2, turns, self._control_bytes)
        self._up, self._down = host[0], host[1]
        self._addresses = [[_address(half[turn]) for turn in range(turns)] for half in (self._up, self._down)]

    def row_address(self, frame: int, row: int) -> int:
        """Where the payload of a row begins."""
        return self.payload + (frame * self.rows + row) * self.row_bytes

    def upload(self, turn: int, index: NDArray[np.int32], stream: Stream) -> tuple[torch.Tensor, torch.Tensor]:
        """Copy `index`, int32 (S, 3), to the turn's place, and zero its checksums behind it; S <= `rows`.

        Returns both on the device: int32 (S, 3), and int64 (S * sums,), for the caller to cut as its kernels want it.
        The turn's copies of before must have ended.
        """
        count = len(index)
        head, tail = _round_up(count * INDEX_BYTES, 16), count * self.sums * SUM_BYTES
        staged = self._up[turn]
        staged[: count * INDEX_BYTES] = index.reshape(-1).view(np.uint8)
        staged[head : head + tail] = 0
        offset = turn * self._control_bytes
        self._ring.runtime.copy(self._ring.address + offset, self._addresses[0][turn], head + tail, stream)
        on_device = self._ring.view(offset, count * INDEX_BYTES).view(torch.int32).view(count, 3)
        return on_device, self._ring.view(offset + head, tail).view(torch.int64)

    def download(self, turn: int, count: int, stream: Stream) -> NDArray[np.uint64]:
        """Copy the checksums of the turn's `count` slots to the host: uint64 (count * sums,).

        They are there once the stream has passed, until the turn's next download.
        """
        head, tail = _round_up(count * INDEX_BYTES, 16), count * self.sums * SUM_BYTES
        source = self._ring.address + turn * self._control_bytes + head
        self._ring.runtime.copy(self._addresses[1][turn], source, tail, stream)
        sums: NDArray[np.uint64] = self._down[turn, :tail].view(np.uint64)
        return sums


def _address(array: NDArray[np.uint8]) -> int:
    return int(array.__array_interface__["data"][0])


def _round_up(nbytes: int, multiple: int = _ALIGNMENT) -> int:
    return -(-nbytes // multiple) * multiple
