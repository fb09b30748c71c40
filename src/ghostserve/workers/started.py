"""A process that was started for a group, and how it ended."""

import os
import select
import signal
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

__all__ = ["Exited", "Started", "Watched", "readable"]


@dataclass(frozen=True)
class Exited:
    """A worker's process has ended; `status` as `Popen.returncode` (negative: the signal).

    `reason`: why there is no status, which then means nothing: there never was a process, or nobody saw its end.
    """

    status: int
    reason: str = ""

    def __str__(self) -> str:
        if self.reason:
            return self.reason
        if self.status < 0:
            return f"killed by {signal.Signals(-self.status).name}"
        return f"exited with {self.status}"

    @classmethod
    def refused(cls, error: OSError) -> "Exited":
        """The system did not give what a process takes."""
        return cls(0, f"the system refuses another process: {error.strerror}")


class Started(Protocol):
    """A process that runs, has run, or is about to."""

    @property
    def pid(self) -> int:
        """0 while it is not known yet; a worker that has said anything is known."""

    def fileno(self) -> int:
        """Readable when `ended` has something to find out."""

    def ended(self, timeout: float | None = 0.0) -> Exited | None:
        """How it ended; None if it still runs after `timeout` seconds (None: however long it takes)."""

    def kill(self) -> None:
        """SIGKILL; what has not begun yet never will."""

    def close(self) -> None:
        """Give back what it takes to watch it."""


class Watched:
    """`Started`, of a process that runs already and whose starter knows how to kill and to reap it."""

    def __init__(self, pid: int, kill: Callable[[], object], reap: Callable[[], int | None]) -> None:
        """`reap` waits for the end and gives the exit status. Raises `OSError` if the process can't be watched: then
        it is killed."""
        self.pid, self._kill, self._reap = pid, kill, reap
        try:
            self._pidfd = os.pidfd_open(pid)
        except OSError:
            kill()
            reap()
            raise

    def fileno(self) -> int:
        return self._pidfd

    def ended(self, timeout: float | None = 0.0) -> Exited | None:
        return Exited(self._reap() or 0) if readable(self._pidfd, timeout) else None

    def kill(self) -> None:
        self._kill()

    def close(self) -> None:
        os.close(self._pidfd)


def readable(descriptor: int, timeout: float | None) -> bool:
    """Whether there is something to read, or an end, within `timeout` seconds (None: waits for it)."""
    poll = select.poll()  # unlike select() it takes any number of open files
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(None if timeout is None else max(0.0, timeout) * 1000))
