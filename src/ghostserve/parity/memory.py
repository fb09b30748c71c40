"""Anonymous shared memory that a whole node maps and that can't leak.

It has no name: it lives as long as some process holds its descriptor or maps it, so nothing is left behind
even when every process is killed at once. Unlike files in /dev/shm it is not bound to that mount's size.
"""

import fcntl
import mmap
import os
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from ghostserve.errors import ConfigError, MemoryBudgetError, StoreMismatchError
from ghostserve.parity.limits import available_memory, format_bytes

__all__ = ["SharedRegion"]


class SharedRegion:
    """A mapping of `nbytes` bytes of shared memory.

    `fd` is passed to other processes (inherited, or sent over a socket), which `attach` to it. Pages are
    taken from the machine when they are first touched, and read as zeros before.
    """

    def __init__(self, fd: int, nbytes: int) -> None:
        """Map a descriptor that this region owns from now on; use `create` or `attach`."""
        self.fd = fd
        self.nbytes = nbytes
        self._map: mmap.mmap | None = mmap.mmap(fd, nbytes)
        self._array: NDArray[np.uint8] | None = np.frombuffer(self._map, dtype=np.uint8)

    @classmethod
    def create(cls, label: str, nbytes: int) -> "SharedRegion":
        """Make a region of zeros, readable and writable by this user only and of a size that can't change.

        `label` shows up in /proc/PID/maps. Raises `MemoryBudgetError` when the host has less memory than
        that, or refuses it.
        """
        if nbytes <= 0:
            raise ConfigError(f"shared memory {label!r} of {nbytes} bytes: the size must be at least 1")
        available = available_memory()
        if nbytes > available:
            raise MemoryBudgetError(
                f"{label} needs {format_bytes(nbytes)} of host memory, "
                f"{format_bytes(available)} are available: lower the parity budget or the number of "
                f"cache blocks, or free memory on this host",
                needed=nbytes,
                available=available,
            )
        try:
            return cls._create(label, nbytes)
        except OSError as error:  # a limit of this process or its group that says nothing before
            raise MemoryBudgetError(
                f"{label} of {format_bytes(nbytes)}: the system refuses the shared memory ({error.strerror}), though"
                f" {format_bytes(available)} are available: raise this process's limits (ulimit -v, ulimit -n), or"
                " lower the parity budget or the number of cache blocks",
                needed=nbytes,
                available=available,
            ) from error

    @classmethod
    def _create(cls, label: str, nbytes: int) -> "SharedRegion":
        fd = os.memfd_create(label, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.fchmod(fd, 0o600)
            os.ftruncate(fd, nbytes)
            # Without the seals one process could shrink the file and kill all others with SIGBUS.
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
            return cls(fd, nbytes)
        except BaseException:
            os.close(fd)
            raise

    @classmethod
    def attach(cls, fd: int, nbytes: int) -> "SharedRegion":
        """Map a region that another process made. `fd` is duplicated: it stays the caller's to close.

        Raises `StoreMismatchError` if its size is not `nbytes`.
        """
        found = os.fstat(fd).st_size
        if found != nbytes:
            raise StoreMismatchError(f"shared memory is {found} bytes long, {nbytes} were expected")
        own = os.dup(fd)
        try:
            return cls(own, nbytes)
        except BaseException:
            os.close(own)
            raise

    @property
    def array(self) -> NDArray[np.uint8]:
        """The bytes, uint8 (nbytes,), shared with every process that is attached."""
        if self._array is None:
            raise ValueError("this shared region is closed")
        return self._array

    def punch(self) -> None:
        """Give all pages back to the machine: every process that is attached reads zeros from now on."""
        if self._map is None:
            raise ValueError("this shared region is closed")
        self._map.madvise(mmap.MADV_REMOVE)

    def close(self) -> None:
        """Give up the descriptor and the mapping; views in use keep the mapping until they go. Idempotent."""
        if self._map is None:
            return
        mapping, self._map, self._array = self._map, None, None
        os.close(self.fd)
        self.fd = -1
        try:
            mapping.close()
        except BufferError:
            # Someone still holds a view: unmapping now would crash them, the last view does it instead.
            del mapping

    def __enter__(self) -> "SharedRegion":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
