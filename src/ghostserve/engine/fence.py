"""What keeps a released epoch's results inside the worker, where collectives can be cut off but never raise.

An NCCL collective whose peer has died hangs on the device, and so does the host thread that waits for it. The only
way out is to abort the communicator from another thread. Then the kernels end **without an error and with garbage**.
So the order is: first the fence, then the abort; and whoever waited looks at the fence before it believes anything.

An abort waits for a launch under way: a collective that is several sends (a gather, an exchange) is a group of NCCL's
calls, and in a thread in which one stays open the next join hangs.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from ghostserve.engine.communicator import CommunicatorError

__all__ = ["Fence"]

_LAUNCH_SECONDS = 0.1


class Fence:
    """Stands between the thread that hears of a failure (`raise_to`) and the one that computes (`check`)."""

    def __init__(self, launch_seconds: float = _LAUNCH_SECONDS) -> None:
        """`launch_seconds`: for how long an abort waits for a launch. One takes about 0.1 ms, or hangs itself where
        the device's queue is full or a peer does not connect: only the abort ends that.
        """
        self._launch_seconds = launch_seconds
        self._lock = threading.Lock()
        """Held while a communicator is aborted, opened or given up: none of these may overlap."""
        self._launch = threading.Lock()
        """Held while a collective is launched."""
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
            if self._launch.acquire(timeout=self._launch_seconds):
                self._launch.release()
            self._cut()

    @contextmanager
    def launching(self) -> Iterator[None]:
        """Launch a collective in here: an abort waits for it. Raises `CommunicatorError` behind the fence."""
        with self._launch:
            self.check()
            yield

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
