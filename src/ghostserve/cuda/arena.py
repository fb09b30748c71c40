"""A rank's KV cache in device memory: the owner's side, and how another process of the node sees it."""

import ctypes
from collections.abc import Sequence
from types import TracebackType
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray

from ghostserve.cuda import ipc
from ghostserve.cuda.interface import Runtime
from ghostserve.cuda.shards import PagedShard
from ghostserve.errors import CudaError
from ghostserve.parity.geometry import CacheLayout
from ghostserve.parity.ranges import SlotRange, num_slots, tiles

__all__ = ["DeviceArena", "PeerArena", "tensor_view"]

Bytes = NDArray[np.uint8]

# CUDA cuts smaller allocations out of blocks of this size and shares the whole block with who opens one.
GRANULE = 2 << 20
STAGING_BYTES = 32 << 20
POISON = 0xFF


class _DeviceMemory:
    """`nbytes` bytes at an address of this process; `gather` and `scatter` are for rare uses, not for flushes.

    They go by one 2-D copy for each segment and range over a short-lived staging buffer, so that they work
    for memory of every device that is mapped here. They return when the bytes have arrived. What the model
    writes to the slots must have happened: synchronise its stream first.
    """

    def __init__(self, runtime: Runtime, address: int, nbytes: int) -> None:
        self._runtime = runtime
        self._address: int | None = address
        self._nbytes = nbytes
        self.staging_bytes = STAGING_BYTES
        """The most that `gather` and `scatter` take on the device at a time, of `runtime.malloc`."""

    @property
    def address(self) -> int:
        """Where the arena begins in this process."""
        if self._address is None:
            raise ValueError("this arena is closed")
        return self._address

    @property
    def nbytes(self) -> int:
        return self._nbytes

    def shard(self, layout: CacheLayout) -> PagedShard:
        """This arena as the kernels take it; raises `ValueError` if the layout is larger."""
        self._check_layout(layout)
        return PagedShard.of_arena(layout, self.address)

    def gather(self, layout: CacheLayout, ranges: Sequence[SlotRange], out: Bytes | None = None) -> Bytes:
        """The data shards of the slots of `ranges`, uint8 (S, slot_bytes), token-major; as `paging.gather`."""
        shards = np.empty((num_slots(ranges), layout.slot_bytes), dtype=np.uint8) if out is None else out
        self._move(layout, ranges, shards, read=True)
        return shards

    def scatter(self, layout: CacheLayout, ranges: Sequence[SlotRange], shards: Bytes) -> None:
        """Write `shards`, uint8 (S, slot_bytes), to the slots of `ranges`: the inverse of `gather`."""
        self._move(layout, ranges, shards, read=False)

    def close(self) -> None:
        """Give the memory up. Idempotent."""
        address, self._address = self._address, None
        if address is not None:
            self._release(address)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _release(self, address: int) -> None:
        raise NotImplementedError

    def _check_layout(self, layout: CacheLayout) -> None:
        if layout.total_bytes > self.nbytes:
            raise ValueError(f"the arena has {self.nbytes} bytes, the layout needs {layout.total_bytes}")

    def _move(self, layout: CacheLayout, ranges: Sequence[SlotRange], shards: Bytes, *, read: bool) -> None:
        self._check_layout(layout)
        for r in ranges:
            if not (0 <= r.block < layout.num_blocks and 0 <= r.start <= r.stop <= layout.block_size):
                raise ValueError(f"{r} is outside a cache of {layout.num_blocks} blocks of {layout.block_size} slots")
        total = num_slots(ranges)
        if shards.shape != (total, layout.slot_bytes) or shards.dtype != np.uint8:
            raise ValueError(f"shards are {shards.dtype} {shards.shape}, not uint8 {(total, layout.slot_bytes)}")
        if total == 0:
            return
        rows = min(total, max(1, self.staging_bytes // layout.slot_bytes))
        staging = self._runtime.malloc(rows * layout.slot_bytes)
        try:
            view = tensor_view(self._runtime, staging, rows * layout.slot_bytes).view(rows, layout.slot_bytes)
            first = 0
            for tile in tiles(ranges, rows):
                count = num_slots(tile)
                part = shards[first : first + count]
                if read:
                    self._copy_tile(layout, tile, staging, read=True)
                    part[:] = view[:count].cpu().numpy()
                else:
                    view[:count].copy_(torch.from_numpy(np.ascontiguousarray(part)))
                    self._copy_tile(layout, tile, staging, read=False)
                first += count
        finally:
            self._runtime.free(staging)

    def _copy_tile(self, layout: CacheLayout, tile: Sequence[SlotRange], staging: int, *, read: bool) -> None:
        # The current stream is the one that torch's own copies of `view` go to.
        stream = self._runtime.current_stream()
        row = 0
        for r in tile:
            column = staging + row * layout.slot_bytes
            for s in layout.segments:
                cell = self.address + s.offset + r.block * s.block_stride + r.start * s.slot_stride
                there, here = (cell, s.slot_stride), (column, layout.slot_bytes)
                target, source = (here, there) if read else (there, here)
                self._runtime.copy_rows(*target, *source, s.nbytes, r.num_slots, stream)
                column += s.nbytes
            row += r.num_slots
        stream.synchronize()


class DeviceArena(_DeviceMemory):
    """One rank's own KV cache: memory of its device that other processes can open by `handle`."""

    _borrowed = False

    @classmethod
    def over(cls, runtime: Runtime, address: int, nbytes: int) -> "DeviceArena":
        """Memory that somebody else took, and keeps for as long as this is open: `close` does not free it."""
        arena = cls(runtime, address, nbytes)
        arena._borrowed = True
        return arena

    @classmethod
    def allocate(cls, runtime: Runtime, nbytes: int) -> "DeviceArena":
        """Take `nbytes` bytes, every one 0xFF (NaN in every float type). Raises `DeviceMemoryError`."""
        room = -(-nbytes // GRANULE) * GRANULE
        arena = cls(runtime, runtime.malloc(room), nbytes)
        try:
            stream = runtime.stream()
            runtime.fill(arena.address, POISON, room, stream)
            stream.synchronize()
        except BaseException:
            arena.close()
            raise
        return arena

    @property
    def handle(self) -> bytes:
        """What `PeerArena.open` takes in another process. Raises `PeerAccessError` where CUDA IPC is refused."""
        return self._runtime.export(self.address)

    @property
    def tensor(self) -> torch.Tensor:
        """The bytes, uint8 (nbytes,), without a copy; dangling once the arena is closed."""
        return tensor_view(self._runtime, self.address, self.nbytes)

    def _release(self, address: int) -> None:
        # Whoever has it open must have closed it (or be dead): CUDA leaves the rest undefined.
        if not self._borrowed:
            self._runtime.free(address)


class PeerArena(_DeviceMemory):
    """Another process's arena, mapped here; it stays readable when that process dies."""

    def __init__(self, runtime: Runtime, address: int, nbytes: int, handle: bytes) -> None:
        """Takes over one `open` of `handle`; use `open`."""
        super().__init__(runtime, address, nbytes)
        self._handle = handle

    @classmethod
    def open(cls, runtime: Runtime, handle: bytes, nbytes: int) -> "PeerArena":
        """Map the arena of `nbytes` bytes behind `handle`; raises `PeerAccessError`, or `CudaError` if smaller."""
        room = ipc.handle_room(handle)
        if room < nbytes:
            raise CudaError(f"a peer's arena has {room} bytes behind its address, {nbytes} were expected")
        return cls(runtime, runtime.open(handle), nbytes, handle)

    def _release(self, address: int) -> None:
        self._runtime.close(self._handle)


class _Span:
    """Tells torch about memory that is not its own."""

    def __init__(self, address: int, nbytes: int) -> None:
        self.__cuda_array_interface__ = {
            "shape": (nbytes,),
            "typestr": "|u1",
            "data": (address, False),
            "strides": None,
            "version": 3,
        }


def tensor_view(runtime: Runtime, address: int, nbytes: int) -> torch.Tensor:
    """Memory of the runtime's own device as a tensor, uint8 (nbytes,), on that device; it owns nothing."""
    if runtime.device.type == "cpu":
        return torch.from_numpy(np.ctypeslib.as_array((ctypes.c_uint8 * nbytes).from_address(address)))
    view = torch.as_tensor(_Span(address, nbytes), device=runtime.device)
    # For memory of another device torch makes a copy without a word.
    if view.data_ptr() != address:
        raise CudaError(f"the {nbytes} bytes at {address:#x} are not in the memory of {runtime.device}")
    return view
