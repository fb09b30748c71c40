"""Handles of device memory that other processes open, and the count of what this process has open.

Pure bookkeeping: the calls into CUDA are in `runtime`.
"""

import functools
import os
import secrets
import threading
from collections.abc import Callable
from dataclasses import dataclass

import msgspec

from ghostserve.errors import CudaError

__all__ = ["IpcHandle", "Mappings", "decode", "encode", "handle_room", "this_process"]

ALLOCATION_BYTES = 64


class IpcHandle(msgspec.Struct, frozen=True, array_like=True, tag="ghostserve-ipc-1"):
    """An address in some process's device memory.

    `device`: UUID (16 bytes). `allocation`: CUDA's handle (64 bytes) of the allocation that holds the
    address, `offset` bytes behind its begin; `room` bytes are left from the address to its end. `process` and
    `address` tell the owner its own memory again, which CUDA refuses to open. `pid` is for people.
    """

    device: bytes
    allocation: bytes
    offset: int
    room: int
    process: bytes
    address: int
    pid: int


def encode(handle: IpcHandle) -> bytes:
    """The handle as bytes that can be sent to another process of this machine."""
    return msgspec.msgpack.encode(handle)


def decode(handle: bytes) -> IpcHandle:
    """Back from bytes; raises `CudaError` if they are no handle."""
    try:
        found = msgspec.msgpack.decode(handle, type=IpcHandle)
    except msgspec.MsgspecError as error:
        raise CudaError(f"{len(handle)} bytes that are no handle of device memory: {error}") from error
    if len(found.allocation) != ALLOCATION_BYTES:
        raise CudaError(f"a handle of device memory holds {len(found.allocation)} bytes, not {ALLOCATION_BYTES}")
    return found


def handle_room(handle: bytes) -> int:
    """Bytes from the handle's address to the end of its allocation; raises `CudaError` if it is none."""
    return decode(handle).room


def this_process() -> bytes:
    """16 bytes that name this process; its number may mean another one elsewhere (PID namespaces)."""
    return _process_name(os.getpid())


@functools.lru_cache(maxsize=1)
def _process_name(pid: int) -> bytes:
    # A forked child asks with another pid, so it gets a name of its own.
    return secrets.token_bytes(16)


@dataclass
class _Mapping:
    base: int
    count: int
    own: bool


class Mappings:
    """What is open, counted for each allocation: several addresses of one share one mapping. Thread-safe."""

    def __init__(self, map_allocation: Callable[[IpcHandle], int], unmap: Callable[[int], None], own: bytes) -> None:
        """`map_allocation` gives an allocation's base here, `unmap` takes that; `own`: `this_process()`."""
        self._map = map_allocation
        self._unmap = unmap
        self._own = own
        self._open: dict[tuple[bytes, bytes, int], _Mapping] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        """Allocations of other processes that are mapped here."""
        with self._lock:
            return sum(not mapping.own for mapping in self._open.values())

    def open(self, handle: IpcHandle) -> int:
        """The address here; every `open` needs one `close`."""
        key = self._key(handle)
        with self._lock:
            mapping = self._open.get(key)
            if mapping is None:
                own = handle.process == self._own
                base = handle.address - handle.offset if own else self._map(handle)
                mapping = self._open[key] = _Mapping(base, 0, own)
            mapping.count += 1
            return mapping.base + handle.offset

    def close(self, handle: IpcHandle) -> None:
        """Undo one `open`; the last one unmaps. Raises `CudaError` for a handle that is not open."""
        key = self._key(handle)
        with self._lock:
            mapping = self._open.get(key)
            if mapping is None:
                raise CudaError(
                    f"a handle of process {handle.pid} was closed that is not open in process {os.getpid()}"
                )
            mapping.count -= 1
            if mapping.count == 0:
                del self._open[key]
                if not mapping.own:
                    self._unmap(mapping.base)

    def _key(self, handle: IpcHandle) -> tuple[bytes, bytes, int]:
        # Another process's address may have been freed and taken again: CUDA's handle tells the two apart.
        name = b"" if handle.process == self._own else handle.allocation
        return handle.process, name, handle.address - handle.offset
