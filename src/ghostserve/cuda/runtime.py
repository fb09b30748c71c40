"""CUDA as the data path needs it: few calls, addresses as ints, every failure an exception with numbers."""

import os
from collections.abc import Iterable
from contextlib import AbstractContextManager
from typing import Any

import torch
from cuda.bindings import driver
from cuda.bindings import runtime as cudart

from ghostserve.cuda import ipc
from ghostserve.cuda.calls import check, failed, result
from ghostserve.cuda.interface import Event, Runtime, Stream
from ghostserve.errors import CudaError, DeviceMemoryError, DeviceUnavailableError, PeerAccessError
from ghostserve.parity.limits import format_bytes

__all__ = ["CudaRuntime", "Event", "Runtime", "Stream"]

_ANY_DIRECTION = cudart.cudaMemcpyKind.cudaMemcpyDefault
_REGISTER_FLAGS = cudart.cudaHostRegisterPortable | cudart.cudaHostRegisterMapped


class CudaRuntime:
    """The `Runtime` of one real device, for a process that works on that one. Thread-safe."""

    def __init__(self, device: torch.device | int) -> None:
        """Makes the device's context (some 500 MiB there); `DeviceUnavailableError` if there is no such device."""
        index = device if isinstance(device, int) else device.index
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if index is None or not 0 <= index < count:
            raise DeviceUnavailableError(
                f"CUDA device {index} does not exist: torch {torch.__version__} sees {count} devices here "
                f"(CUDA_VISIBLE_DEVICES={os.environ.get('CUDA_VISIBLE_DEVICES', 'not set')})"
            )
        self._device = torch.device("cuda", index)
        self._index: int = index
        # Before CUDA 13 the call for many copies has another form.
        self._batches = result(cudart.cudaRuntimeGetVersion(), "read the version of cuda-bindings") >= 13000
        self._mappings = ipc.Mappings(self._map, self._unmap, ipc.this_process())
        self._use_device()
        free, _ = self.memory()
        properties = result(cudart.cudaGetDeviceProperties(index), f"read the properties of device {index}")
        self._uuid: bytes = properties.uuid.bytes
        least, greatest = result(cudart.cudaDeviceGetStreamPriorityRange(), "read the range of stream priorities")
        if free <= 0:
            raise DeviceMemoryError(f"device {index} has no memory free", needed=1, available=free)
        # Lower numbers go first; `least` is 0, the priority of torch's default stream, on every GPU so far:
        # nothing goes below it. So a low-priority stream yields only to a stream that was raised, and
        # the others of `stream` are raised by one step. A model on the default stream shares with it as an equal.
        self._low: int = least
        self._normal: int = max(least - 1, greatest)

    @property
    def device(self) -> torch.device:
        return self._device

    @property
    def mapped(self) -> int:
        """Allocations of other processes that are mapped here now."""
        return len(self._mappings)

    def pci_bus_id(self) -> str:
        """The device's place on the bus, as the kernel writes it: "0000:3b:00.0"."""
        raw: bytes = result(cudart.cudaDeviceGetPCIBusId(32, self._index), f"read the bus id of {self._device}")
        return raw.split(b"\0")[0].decode().lower()

    def copy(self, target: int, source: int, nbytes: int, stream: Stream) -> None:
        if nbytes:
            self._use_device()
            returned = cudart.cudaMemcpyAsync(target, source, nbytes, _ANY_DIRECTION, _pointer(stream))
            if int(returned[0]):
                tried = f"copy {nbytes} bytes from {source:#x} to {target:#x} on {self._device}"
                raise failed(returned[0], tried, _COPY_ADVICE)

    def copy_many(self, copies: Iterable[tuple[int, int, int]], stream: Stream) -> None:
        queue, wanted = _pointer(stream), list(copies)
        self._use_device()
        if len(wanted) > 1 and self._batches:
            # One call for all: the copy engine then rests less between them than after calls of their own.
            targets, sources, sizes = (list(column) for column in zip(*wanted, strict=True))
            tried = f"copy {len(wanted)} pieces, {sum(sizes)} bytes in all, on {self._device}"
            order = cudart.cudaMemcpyAttributes()
            order.srcAccessOrder = cudart.cudaMemcpySrcAccessOrder.cudaMemcpySrcAccessOrderStream
            returned = cudart.cudaMemcpyBatchAsync(targets, sources, sizes, len(wanted), [order], [0], 1, queue)
            check(returned, tried, _COPY_ADVICE)
            return
        for target, source, nbytes in wanted:
            self.copy(target, source, nbytes, stream)

    def copy_rows(
        self, target: int, target_stride: int, source: int, source_stride: int, width: int, rows: int, stream: Stream
    ) -> None:
        if rows <= 1 or target_stride == source_stride == width:
            self.copy(target, source, width * rows, stream)
            return
        if width == 0:
            return
        if width > min(target_stride, source_stride):
            raise ValueError(f"rows of {width} bytes don't fit strides of {target_stride} and {source_stride} bytes")
        self._use_device()
        check(
            cudart.cudaMemcpy2DAsync(
                target, target_stride, source, source_stride, width, rows, _ANY_DIRECTION, _pointer(stream)
            ),
            f"copy {rows} rows of {width} bytes from {source:#x} (stride {source_stride}) "
            f"to {target:#x} (stride {target_stride}) on {self._device}",
            _COPY_ADVICE,
        )

    def fill(self, target: int, byte: int, nbytes: int, stream: Stream) -> None:
        if not 0 <= byte <= 255:
            raise ValueError(f"a byte is 0..255, not {byte}")
        if nbytes == 0:
            return
        self._use_device()
        check(
            cudart.cudaMemsetAsync(target, byte, nbytes, _pointer(stream)),
            f"fill {nbytes} bytes at {target:#x} on {self._device}",
        )

    def malloc(self, nbytes: int) -> int:
        if nbytes <= 0:
            raise ValueError(f"{nbytes} bytes of device memory were asked for: it must be at least 1")
        self._use_device()
        returned = cudart.cudaMalloc(nbytes)
        if returned[0] == cudart.cudaError_t.cudaErrorMemoryAllocation:
            # Torch keeps what it freed for itself; only then is the device really full.
            cudart.cudaGetLastError()
            torch.cuda.empty_cache()
            returned = cudart.cudaMalloc(nbytes)
        if returned[0] == cudart.cudaError_t.cudaErrorMemoryAllocation:
            cudart.cudaGetLastError()
            free, total = self.memory()
            raise DeviceMemoryError(
                f"{self._device} can't give {format_bytes(nbytes)} ({nbytes} bytes): {format_bytes(free)} of "
                f"{format_bytes(total)} are free; use fewer cache blocks or free memory on this GPU",
                needed=nbytes,
                available=free,
            )
        address: int = result(returned, f"take {nbytes} bytes of memory on {self._device}")
        return address

    def free(self, address: int) -> None:
        self._use_device()
        check(cudart.cudaFree(address), f"free the memory at {address:#x} on {self._device}")

    def memory(self) -> tuple[int, int]:
        self._use_device()
        free, total = result(cudart.cudaMemGetInfo(), f"read the free memory of {self._device}")
        return free, total

    def register(self, address: int, nbytes: int) -> None:
        tried = f"pin {format_bytes(nbytes)} ({nbytes} bytes) of host memory at {address:#x} for {self._device}"
        if nbytes <= 0:
            raise ValueError(f"{nbytes} bytes of host memory were to be pinned: it must be at least 1")
        self._use_device()
        check(
            cudart.cudaHostRegister(address, nbytes, _REGISTER_FLAGS),
            tried,
            "the range must be mapped, not pinned already (even in part), and the host must have that much memory "
            "(see also `ulimit -l`)",
        )
        seen: int = result(cudart.cudaHostGetDevicePointer(address, 0), f"map what it could {tried}")
        if seen != address:
            self.unregister(address)
            raise CudaError(
                f"{self._device} sees host memory at {address:#x} as {seen:#x}: "
                f"GhostServe needs a machine where both are the same (unified addressing)"
            )

    def unregister(self, address: int) -> None:
        self._use_device()
        check(cudart.cudaHostUnregister(address), f"unpin the host memory at {address:#x}")

    def export(self, address: int) -> bytes:
        tried = f"share the memory at {address:#x} of {self._device} with other processes"
        advice = (
            "only memory of cudaMalloc can be shared: unset PYTORCH_ALLOC_CONF and PYTORCH_CUDA_ALLOC_CONF "
            "(expandable_segments, cudaMallocAsync); some sandboxes and virtual GPUs refuse it altogether"
        )
        self._use_device()
        error, base, size = driver.cuMemGetAddressRange(address)
        if int(error):
            raise failed(error, tried, "the address is in no allocation of this process's device memory")
        error, handle = cudart.cudaIpcGetMemHandle(int(base))
        if int(error):
            raise failed(error, tried, advice, PeerAccessError)
        offset = address - int(base)
        return ipc.encode(
            ipc.IpcHandle(self._uuid, handle.reserved, offset, size - offset, ipc.this_process(), address, os.getpid())
        )

    def open(self, handle: bytes) -> int:
        return self._mappings.open(ipc.decode(handle))

    def close(self, handle: bytes) -> None:
        self._mappings.close(ipc.decode(handle))

    def stream(self, *, low_priority: bool = False) -> Stream:
        # From torch's pool: it is never destroyed, and the caching allocator knows it.
        priority = self._low if low_priority else self._normal
        return torch.cuda.Stream(self._device, priority=priority)  # type: ignore[no-untyped-call]

    def event(self, *, spins: bool = False) -> Event:
        return torch.cuda.Event(blocking=not spins)  # type: ignore[no-untyped-call]

    def current_stream(self) -> Stream:
        return torch.cuda.current_stream(self._device)

    def use(self, stream: Stream) -> AbstractContextManager[Any]:
        if not isinstance(stream, torch.cuda.Stream):
            raise TypeError(f"{stream!r} is no stream of CUDA")
        return torch.cuda.stream(stream)

    def _map(self, handle: ipc.IpcHandle) -> int:
        tried = f"map {format_bytes(handle.offset + handle.room)} of device memory of process {handle.pid}"
        raw = cudart.cudaIpcMemHandle_t()
        raw.reserved = handle.allocation
        self._use_device()
        # Opened by a handle, memory of another GPU enables peer access by itself.
        error, base = cudart.cudaIpcOpenMemHandle(raw, cudart.cudaIpcMemLazyEnablePeerAccess)
        if int(error):
            where = "the same GPU" if handle.device == self._uuid else f"another GPU (UUID {handle.device.hex()})"
            raise failed(
                error,
                f"{tried}, which is on {where}, into {self._device}",
                "that process must still run, both must be allowed to use CUDA IPC (in containers: "
                "`--ipc=host --pid=host`), and two GPUs need peer access",
                PeerAccessError,
            )
        return int(base)

    def _unmap(self, base: int) -> None:
        self._use_device()
        check(cudart.cudaIpcCloseMemHandle(base), f"unmap another process's memory at {base:#x}")

    def _use_device(self) -> None:
        """Make this the thread's device, for torch's copy of the CUDA runtime and for the bindings' own.

        Without it a call from a fresh thread would quietly make a context on device 0. It stays the thread's device:
        setting it back after each call would cost more than the call.
        """
        if torch.cuda.current_device() != self._index:
            torch.cuda.set_device(self._device)
        # Each time: the bindings remember a device of their own, which neither torch nor another runtime tells them.
        check(cudart.cudaSetDevice(self._index), "use this runtime's device", _VERSION_ADVICE)


_COPY_ADVICE = "both sides must be device memory, an open mapping, or within one registered host range"
_VERSION_ADVICE = "cuda-bindings must be of a CUDA version that the driver serves (see `nvidia-smi`)"


def _pointer(stream: Stream) -> int:
    if not isinstance(stream, torch.cuda.Stream):
        raise TypeError(f"{stream!r} is no stream of CUDA")
    return int(stream.cuda_stream)
