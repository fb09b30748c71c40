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

    index: for each turn, int32 (rows, 3) in pinned host memory: what `upload` takes up.
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
        index_bytes, self._sums_at = self.rows * INDEX_BYTES, _round_up(self.rows * INDEX_BYTES)
        control_bytes = _round_up(self._sums_at + self.rows * sums * SUM_BYTES)
        self.payload = ring.address + turns * control_bytes
        # Up and down apart: a tile's checksums may be on their way while the next index is being written. What goes up
        # behind an index is zeros, and nobody ever writes anything else there.
        up, down = ring.pin(2 * turns * control_bytes).reshape(2, turns, control_bytes)
        up[:] = 0
        self.index = [up[turn, :index_bytes].view(np.int32).reshape(self.rows, 3) for turn in range(turns)]
        self._found = [down[turn, self._sums_at :].view(np.uint64) for turn in range(turns)]
        self._up, self._down = ([_address(half[turn]) for turn in range(turns)] for half in (up, down))
        self._control = [ring.address + turn * control_bytes for turn in range(turns)]
        # Cut once, as cutting a tensor takes the host longer than all else that it does for a tile.
        self._on_device = []
        for turn in range(turns):
            whole = ring.view(turn * control_bytes, control_bytes)
            index = whole[:index_bytes].view(torch.int32).view(self.rows, 3)
            self._on_device.append((index, whole[self._sums_at :].view(torch.int64)))

    def row_address(self, frame: int, row: int) -> int:
        """Where the payload of a row begins."""
        return self.payload + (frame * self.rows + row) * self.row_bytes

    def upload(self, turn: int, count: int, stream: Stream) -> tuple[torch.Tensor, torch.Tensor]:
        """Copy the first `count` rows of `index[turn]` up, and zero their checksums; `count` <= `rows`.

        Returns both on the device: int32 (rows, 3), of which `count` are new, and int64 (at least rows * sums,), of
        which count * sums are zero, for the caller to cut as its kernels want it. What the turn was used for before
        must have ended.
        """
        nbytes = self._sums_at + count * self.sums * SUM_BYTES
        self._ring.runtime.copy(self._control[turn], self._up[turn], nbytes, stream)
        return self._on_device[turn]

    def download(self, turn: int, count: int, stream: Stream) -> NDArray[np.uint64]:
        """Copy the checksums of the turn's `count` slots to the host: uint64 (count * sums,).

        They are there once the stream has passed, until the turn's next download.
        """
        at, size = self._sums_at, count * self.sums
        self._ring.runtime.copy(self._down[turn] + at, self._control[turn] + at, size * SUM_BYTES, stream)
        return self._found[turn][:size]


def _address(array: NDArray[np.uint8]) -> int:
    return int(array.__array_interface__["data"][0])


def _round_up(nbytes: int, multiple: int = _ALIGNMENT) -> int:
    return -(-nbytes // multiple) * multiple
