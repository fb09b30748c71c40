"""A `Runtime` over host memory: the data path's logic without a GPU, stricter than CUDA about what may be touched.

Two `FakeRuntime`s on one `FakeNode` are two processes of a machine: what one exports the other opens. Streams do
everything at once; `log` says what was asked for, in order. Memory is poisoned when it is taken and when it is freed.
"""

import contextlib
import ctypes
import itertools
import threading
from dataclasses import dataclass, field

import numpy as np
import torch

from ghostserve.cuda import ipc
from ghostserve.errors import CudaError, DeviceMemoryError, PeerAccessError

FRESH = 0xA5
FREED = 0xDD
ALIGNMENT = 512


@dataclass
class _Allocation:
    address: int
    nbytes: int
    storage: np.ndarray
    handle: bytes = b""


@dataclass
class FakeNode:
    """What the processes of a machine share: exported allocations, how often each is open, freed memory's storage."""

    exports: dict[bytes, _Allocation] = field(default_factory=dict)
    opened: dict[bytes, int] = field(default_factory=dict)
    # Never given back to the system: a late access finds poison rather than crashes.
    graveyard: list[np.ndarray] = field(default_factory=list)
    ipc_refused: bool = False


class FakeStream:
    def __init__(self, runtime, name):
        self.runtime = runtime
        self.name = name

    def wait_event(self, event):
        self.runtime.note("wait", self.name, event.name)

    def wait_stream(self, stream):
        self.runtime.note("wait", self.name, stream.name)

    def synchronize(self):
        self.runtime.note("synchronize", self.name)

    def query(self):
        return True


class FakeEvent:
    def __init__(self, runtime, name):
        self.runtime = runtime
        self.name = name

    def record(self, stream=None):
        self.runtime.note("record", self.name, (stream or self.runtime.current_stream()).name)

    def synchronize(self):
        self.runtime.note("synchronize", self.name)

    def wait(self, stream=None):
        (stream or self.runtime.current_stream()).wait_event(self)

    def query(self):
        return True

    def elapsed_time(self, end_event):
        return 0.0


class FakeRuntime:
    """One process's view. `memory_bytes`: what malloc may hand out in all."""

    def __init__(self, node=None, *, memory_bytes=1 << 30, register_limit=None):
        self.device = torch.device("cpu")
        self.node = node or FakeNode()
        self.log = []
        self._memory_bytes = memory_bytes
        self._register_limit = register_limit
        self._process = np.random.default_rng().bytes(16)
        self._allocations: dict[int, _Allocation] = {}
        self._registered: dict[int, int] = {}
        self._mapped: dict[int, _Allocation] = {}
        self._mappings = ipc.Mappings(self._map, self._unmap, self._process)
        self._lock = threading.RLock()
        self._numbers = itertools.count()
        self._local = threading.local()
        self._default = FakeStream(self, "default")

    # What tests ask.

    def note(self, *what):
        with self._lock:
            self.log.append(what)

    def leaks(self):
        """What is still taken, pinned or mapped; all zero at the end of a clean run."""
        return {"malloc": len(self._allocations), "registered": len(self._registered), "mapped": len(self._mappings)}

    def check(self, address, nbytes):
        """Raise `CudaError` unless the device may touch all of these bytes, within one allocation or pinned range."""
        with self._lock:
            spans = [
                *((a.address, a.nbytes) for a in (*self._allocations.values(), *self._mapped.values())),
                *self._registered.items(),
            ]
        if not any(start <= address and address + nbytes <= start + size for start, size in spans):
            raise CudaError(
                f"the device touched {nbytes} bytes at {address:#x}, which are in no device memory, open mapping or "
                f"registered range",
                code="cudaErrorIllegalAddress",
            )

    # Runtime.

    def copy(self, target, source, nbytes, stream):
        self._stream(stream)
        if nbytes:
            self.check(source, nbytes)
            self.check(target, nbytes)
            ctypes.memmove(target, source, nbytes)
        self.note("copy", stream.name, target, source, nbytes)

    def copy_many(self, copies, stream):
        for copy in copies:
            self.copy(*copy, stream)

    def copy_rows(self, target, target_stride, source, source_stride, width, rows, stream):
        self._stream(stream)
        if rows > 1 and width > min(target_stride, source_stride):
            raise ValueError(f"rows of {width} bytes don't fit strides of {target_stride} and {source_stride} bytes")
        if rows and width:
            self.check(source, (rows - 1) * source_stride + width)
            self.check(target, (rows - 1) * target_stride + width)
            for r in range(rows):
                ctypes.memmove(target + r * target_stride, source + r * source_stride, width)
        self.note("copy_rows", stream.name, target, source, width, rows)

    def fill(self, target, byte, nbytes, stream):
        self._stream(stream)
        if not 0 <= byte <= 255:
            raise ValueError(f"a byte is 0..255, not {byte}")
        if nbytes:
            self.check(target, nbytes)
            ctypes.memset(target, byte, nbytes)
        self.note("fill", stream.name, target, byte, nbytes)

    def malloc(self, nbytes):
        if nbytes <= 0:
            raise ValueError(f"{nbytes} bytes of device memory were asked for: it must be at least 1")
        with self._lock:
            free, _ = self.memory()
            if nbytes > free:
                raise DeviceMemoryError(f"{nbytes} bytes, {free} are free", needed=nbytes, available=free)
            storage = np.full(nbytes + ALIGNMENT, FRESH, dtype=np.uint8)
            address = -(-storage.ctypes.data // ALIGNMENT) * ALIGNMENT
            self._allocations[address] = _Allocation(address, nbytes, storage)
        return address

    def free(self, address):
        with self._lock:
            allocation = self._allocations.get(address)
            if allocation is None:
                raise CudaError(f"{address:#x} was freed, which is no allocation", code="cudaErrorInvalidValue")
            users = self.node.opened.get(allocation.handle, 0)
            if users:
                raise CudaError(f"memory at {address:#x} was freed while {users} processes have it open: undefined")
            del self._allocations[address]
            allocation.storage[:] = FREED
            self.node.graveyard.append(allocation.storage)
            self.node.exports.pop(allocation.handle, None)

    def memory(self):
        return self._memory_bytes - sum(a.nbytes for a in self._allocations.values()), self._memory_bytes

    def register(self, address, nbytes):
        if nbytes <= 0:
            raise ValueError(f"{nbytes} bytes of host memory were to be pinned: it must be at least 1")
        with self._lock:
            if self._register_limit is not None and nbytes > self._register_limit:
                raise CudaError(f"{nbytes} bytes can't be pinned at once", code="cudaErrorMemoryAllocation")
            for start, size in self._registered.items():
                if address < start + size and start < address + nbytes:
                    raise CudaError(
                        f"{nbytes} bytes at {address:#x} are pinned already",
                        code="cudaErrorHostMemoryAlreadyRegistered",
                    )
            self._registered[address] = nbytes

    def unregister(self, address):
        with self._lock:
            if self._registered.pop(address, None) is None:
                raise CudaError(f"{address:#x} is not pinned", code="cudaErrorHostMemoryNotRegistered")

    def export(self, address):
        if self.node.ipc_refused:
            raise PeerAccessError("CUDA IPC is refused", code="cudaErrorNotSupported")
        with self._lock:
            for a in self._allocations.values():
                if a.address <= address < a.address + a.nbytes:
                    a.handle = a.handle or np.random.default_rng().bytes(ipc.ALLOCATION_BYTES)
                    self.node.exports[a.handle] = a
                    offset = address - a.address
                    return ipc.encode(
                        ipc.IpcHandle(bytes(16), a.handle, offset, a.nbytes - offset, self._process, address, 1)
                    )
        raise CudaError(f"{address:#x} is in no allocation", code="CUDA_ERROR_INVALID_VALUE")

    def open(self, handle):
        return self._mappings.open(ipc.decode(handle))

    def close(self, handle):
        self._mappings.close(ipc.decode(handle))

    def stream(self, *, low_priority=False):
        return FakeStream(self, f"{'low' if low_priority else 'stream'}-{next(self._numbers)}")

    def event(self, *, spins=False):
        return FakeEvent(self, f"event-{next(self._numbers)}")

    def current_stream(self):
        return getattr(self._local, "stream", self._default)

    @contextlib.contextmanager
    def use(self, stream):
        self._stream(stream)
        before, self._local.stream = self.current_stream(), stream
        try:
            yield stream
        finally:
            self._local.stream = before

    def _stream(self, stream):
        if not isinstance(stream, FakeStream) or stream.runtime is not self:
            raise TypeError(f"{stream!r} is no stream of this runtime")

    def _map(self, handle):
        allocation = self.node.exports.get(handle.allocation)
        if allocation is None or self.node.ipc_refused:
            raise PeerAccessError("no such memory can be opened", code="cudaErrorMapBufferObjectFailed")
        self._mapped[allocation.address] = allocation
        self.node.opened[handle.allocation] = self.node.opened.get(handle.allocation, 0) + 1
        return allocation.address

    def _unmap(self, base):
        self.node.opened[self._mapped.pop(base).handle] -= 1
