"""Writers that die, for real, at a byte that the test chooses."""

import faulthandler
import mmap
import os
import resource
import signal
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["cut_off", "dies"]

_PAGE = mmap.PAGESIZE


def cut_off(array: NDArray[Any], keep: int) -> NDArray[Any]:
    """A copy of `array` of which only the first `keep` bytes, 0..nbytes-1, can be read: who reads on gets a SIGBUS.

    So a writer that is handed it dies in its own copying, whatever it copies with. Of a write in several pieces those
    before the cut arrive; of the piece with the cut in it some bytes or, as memcpy may read a piece's end first, none.
    Where the kernel does the reading, the call fails with EFAULT instead.
    """
    flat = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    readable = -(-max(keep, 1) // _PAGE) * _PAGE
    first = readable - keep
    file = os.memfd_create("ghostserve-torn")
    try:
        os.ftruncate(file, -(-(first + flat.size) // _PAGE) * _PAGE)
        mapping = mmap.mmap(file, 0)
        bytes_ = np.frombuffer(mapping, np.uint8)[first : first + flat.size]
        bytes_[:] = flat
        os.ftruncate(file, readable)
    finally:
        os.close(file)
    return bytes_.view(array.dtype).reshape(array.shape)


def dies(work: Callable[[], object]) -> bool:
    """Run `work` in a process forked from this one: True if it was killed or raised, False if it returned."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            # It is meant to die: no traceback of it, and no core file.
            faulthandler.disable()
            signal.signal(signal.SIGBUS, signal.SIG_DFL)
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            work()
            status = 0
        finally:
            os._exit(status)
    _, status = os.waitpid(child, 0)
    return status != 0
