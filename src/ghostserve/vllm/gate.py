"""The one door through which an epoch's collectives are launched, so that another thread can shut it.

A collective whose peer has died hangs on the device until its communicator is aborted, and then ends **without an error
and with garbage**. The forward pass goes on with that, and its next collective must not be launched: on an aborted
communicator it would crash, on another one it would wait for the dead peer again. So: shut the gate, then abort.
"""

import threading
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import torch

from ghostserve.errors import GhostServeError
from ghostserve.workers.nccl import Moment, Progress

__all__ = ["Gate", "GatedCommunicator", "ReleasedError"]

T = TypeVar("T")

_LAUNCH_SECONDS = 1.0


class ReleasedError(GhostServeError):
    """A collective was refused, or what it gave is void: its epoch has been released."""


class Gate:
    """Open from the beginning; once shut, for ever. `launch` is the main thread's, `shut` anybody's."""

    def __init__(self, mark: Callable[[], Moment], launch_seconds: float = _LAUNCH_SECONDS) -> None:
        """`mark` records an event on the current stream; `launch_seconds`: what a launch may take in the host."""
        self.progress = Progress()
        self.alone = False
        """No peers are there: collectives are replaced by something of the same shape (for warming up)."""
        self._mark, self._launch_seconds = mark, launch_seconds
        self._lock = threading.Lock()
        self._reason = ""

    def launch(self, collective: Callable[[], T]) -> T:
        """Run what launches a collective. Raises `ReleasedError` if the gate is shut."""
        with self._lock:
            self.check()
            before = self._mark()
            result = collective()
            self.progress.launched(before, self._mark())
            return result

    def check(self) -> None:
        """Raises `ReleasedError` if the gate is shut: what was computed behind it may be garbage."""
        if self._reason:
            raise ReleasedError(self._reason)

    def shut(self, reason: str) -> None:
        """From now on nothing is launched; returns when no launch is under way.

        A launch can itself hang where the device's queue is full: only the abort ends that, so it is not waited for
        longer than launches take.
        """
        self._reason = reason
        if self._lock.acquire(timeout=self._launch_seconds):
            self._lock.release()


class GatedCommunicator:
    """Stands in a group's place for its device communicator: everything is the same, but passes the gate."""

    def __init__(self, inner: Any, gate: Gate) -> None:
        self._inner, self._gate = inner, gate

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._inner, name)
        if not callable(found) or name == "destroy":
            return found
        if self._gate.alone:
            return _stand_in(name, self._inner.world_size)
        return lambda *args, **kwargs: self._gate.launch(partial(found, *args, **kwargs))


def _stand_in(name: str, world_size: int) -> Callable[..., torch.Tensor]:
    def stand_in(input_: torch.Tensor, dim: int = -1) -> torch.Tensor:
        if name == "all_reduce":
            return input_.clone()
        if name == "all_gather":
            return torch.cat([input_] * world_size, dim)
        raise GhostServeError(f"the warm-up of a newcomer runs {name}, which nothing stands in for")

    return stand_in
