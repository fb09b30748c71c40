"""What keeps a released epoch's results inside the worker, where collectives can be cut off but never raise.

An NCCL collective whose peer has died hangs on the device, and so does the host thread that waits for it. The only
way out is to abort the communicator from another thread. Then the kernels end **without an error and with garbage**.
So the order is: first the fence, then the abort; and whoever waited looks at the fence before it believes anything.

A launch must not meet an abort in its middle: a collective that is several sends (a gather, an exchange) is a group of
NCCL's calls, and in a thread in which one stays open the next join hangs.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from ghostserve.engine.communicator import CommunicatorError

__all__ = ["LAUNCH_TIMEOUT", "Fence"]

LAUNCH_TIMEOUT = 0.02
"""Seconds for which an abort waits for a launch: one takes some 0.1 ms, unless it hangs itself, in a full queue."""


class Fence:
    """Stands between the thread that hears of a failure (`raise_to`) and the one that computes (`check`)."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        """Held while a communicator is aborted, opened or given up: none of these may overlap."""
        self._idle = threading.Event()
        self._idle.set()
        self._fenced = 0
        self._epoch = 0
        self._abort: Callable[[], None] | None = None

    def open(self, epoch: int, abort: Callable[[], None]) -> None:
        """The communicator of `epoch` is up; `abort` cuts it off, from any thread.

        Raises `CommunicatorError`, and aborts, if the epoch has been fenced in the meantime.
        """
        with self._lock:
            self._epoch, self._abort = epoch, abort
            self._cut()
        self.check()

    def raise_to(self, epoch: int) -> None:
        """Nothing of an epoch below `epoch` counts any more; returns when what ran under one has been cut off."""
        self._fenced = max(self._fenced, epoch)  # before the abort: what it lets go must find the fence
        with self._lock:
            self._idle.wait(LAUNCH_TIMEOUT)
            self._cut()

    @contextmanager
    def launching(self) -> Iterator[None]:
        """Launch a collective in here: no abort comes amid, and none is launched behind the fence (`check`)."""
        self._idle.clear()  # before the look at the fence, which is raised before the look at this
        try:
            self.check()
            yield
        finally:
            self._idle.set()

    def check(self) -> None:
        """Raises `CommunicatorError` if what was computed under the open epoch may be garbage.

        To be called after waiting for the device, and before anything that was waited for is used.
        """
        if self._epoch < self._fenced:
            raise CommunicatorError(f"epoch {self._epoch} was released at epoch {self._fenced}: its results are void")

    def close(self) -> None:
        """Abort and forget the communicator. Idempotent; waits for an abort that another thread has begun."""
        with self._lock:
            abort, self._abort = self._abort, None
            if abort is not None:
                abort()

    def _cut(self) -> None:
        if self._epoch < self._fenced:
            abort, self._abort = self._abort, None
            if abort is not None:
                abort()
