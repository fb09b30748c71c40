"""The worker processes of one engine: start, talk, watch, end. Mechanism only; decisions are the machine's."""

import selectors
import socket
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import msgspec

from ghostserve.workers.channel import Channel, ChannelClosedError
from ghostserve.workers.started import Exited, Started

__all__ = ["Exited", "Launch", "Started", "WorkerGroup"]

_GRACE = 5.0
_LAST_BREATH = 0.02
"""Seconds that a process gets between the end of its channel and its own, before the first alone is reported. On a GPU
it takes up to a second more: the driver gives its memory back, and unpins what it had pinned."""

In = TypeVar("In")


_UNHEARD = Exited(0, "its channel has ended")

Launch = Callable[[socket.socket], Started]
"""Starts a process that talks through the given end of a socket pair, which stays the caller's to close."""


@dataclass(frozen=True)
class _Process(Generic[In]):
    started: Started
    channel: Channel[In]


class WorkerGroup(Generic[In]):
    """Numbers workers 0, 1, 2, ... as they are started; a number is never used again.

    Everything but `wake` must be called from one thread.
    """

    def __init__(self, launch: Launch, incoming: Any, shutdown: msgspec.Struct) -> None:
        """`incoming`: the union of what workers say; `shutdown`: what asks one to end."""
        self._launch, self._incoming, self._shutdown = launch, incoming, shutdown
        self._processes: dict[int, _Process[In]] = {}
        self._dying: dict[int, _Process[In]] = {}
        """Reported or killed, and not known to have ended."""
        self._stillborn: list[tuple[int, Exited]] = []
        self._next = 0
        self._selector = selectors.DefaultSelector()
        self._wake_read, self._wake_write = socket.socketpair()
        self._wake_read.setblocking(False)
        self._wake_write.setblocking(False)
        self._selector.register(self._wake_read, selectors.EVENT_READ, None)

    def spawn(self) -> int:
        """Start one worker; it says `Hello` when its imports are done.

        Where the system refuses a process, or what it takes to talk to it, `poll` reports its end at once: a machine
        that is out of files or processes for a moment must not take down those that run.
        """
        worker = self._next
        self._next += 1
        try:
            process = self._start()
        except OSError as error:
            self._stillborn.append((worker, Exited.refused(error)))
            return worker
        self._processes[worker] = process
        self._selector.register(process.channel, selectors.EVENT_READ, worker)
        self._selector.register(process.started, selectors.EVENT_READ, worker)
        return worker

    def pid(self, worker: int) -> int:
        """0 for a worker that is gone or never came, and for one that is not known to run yet."""
        return self._processes[worker].started.pid if worker in self._processes else 0

    def alive(self, worker: int) -> bool:
        return worker in self._processes

    def running(self, worker: int) -> bool:
        """False as soon as the process has ended, also before `poll` says so."""
        process = self._processes.get(worker)
        return process is not None and process.started.ended() is None

    def send(self, worker: int, message: msgspec.Struct) -> bool:
        """False if the worker does not take it any more; its end is reported by `poll` or found by a deadline."""
        process = self._processes.get(worker)
        if process is None:
            return False
        try:
            process.channel.send(message)
        except ChannelClosedError:
            return False
        return True

    def wake(self) -> None:
        """End a waiting `poll`; the only method that other threads may call."""
        try:
            self._wake_write.send(b"x")
        except BlockingIOError:
            return  # enough wake-ups are waiting already

    def poll(self, timeout: float | None) -> list[tuple[int, In | Exited]]:
        """What the workers said, and which of them ended, within `timeout` seconds (None: until something comes).

        Who has closed its channel is of no use any more: it is killed, and has ended as far as anybody is told.
        """
        happened: list[tuple[int, In | Exited]] = [*self._stillborn]
        ended: dict[int, Exited] = {}
        for key, _ in self._selector.select(0 if self._stillborn else timeout):
            if key.fileobj is self._wake_read:
                self._wake_read.recv(4096)
                continue
            worker = key.data
            if worker in self._dying:
                if self._dying[worker].started.ended() is not None:
                    self._forget(worker)
                continue
            process = self._processes.get(worker)
            if process is None:
                continue
            if key.fileobj is process.started:
                if (exited := process.started.ended()) is not None:
                    ended[worker] = exited
                continue
            try:
                happened += self._read(worker, process)
            except ChannelClosedError:
                process.started.kill()
                ended.setdefault(worker, process.started.ended(_LAST_BREATH) or _UNHEARD)
        self._stillborn.clear()
        for worker, exited in ended.items():
            with suppress(ChannelClosedError):
                happened += self._read(worker, self._processes[worker])  # its last words
            happened.append((worker, exited))
            self._let_die(worker)
        return happened

    def kill(self, worker: int) -> None:
        """SIGKILL; see `reap`. Nothing is reported for it afterwards."""
        if worker in self._processes:
            self._processes[worker].started.kill()
            self._let_die(worker)

    def reap(self) -> None:
        """Return when all that were killed, or reported to have ended, are gone with all they had."""
        for worker, process in list(self._dying.items()):
            process.started.ended(None)
            self._forget(worker)

    def close(self) -> None:
        """Ask all workers to end, kill those that have not after five seconds, and give everything back."""
        for worker, process in self._processes.items():
            if process.started.pid:
                self.send(worker, self._shutdown)
            else:  # it may wait for a nursery's imports, and has nothing to end
                process.started.kill()
        deadline = time.monotonic() + _GRACE
        for worker, process in list(self._processes.items()):
            if process.started.ended(max(0.0, deadline - time.monotonic())) is None:
                process.started.kill()
            self._let_die(worker)
        self.reap()
        self._selector.close()
        self._wake_read.close()
        self._wake_write.close()

    @property
    def workers(self) -> Sequence[int]:
        return tuple(self._processes)

    def _start(self) -> _Process[In]:
        with ExitStack() as undo:
            ours, theirs = socket.socketpair()
            undo.callback(ours.close)
            with theirs:
                started = self._launch(theirs)
            undo.pop_all()
            return _Process(started, Channel[In](ours, self._incoming))

    def _read(self, worker: int, process: _Process[In]) -> list[tuple[int, In | Exited]]:
        return [(worker, message) for message in process.channel.receive_ready()]

    def _let_die(self, worker: int) -> None:
        """It counts as gone; what is left of it is watched until that is true."""
        process = self._dying[worker] = self._processes.pop(worker)
        self._selector.unregister(process.channel)
        process.channel.close()
        if process.started.ended() is not None:
            self._forget(worker)

    def _forget(self, worker: int) -> None:
        process = self._dying.pop(worker)
        self._selector.unregister(process.started)
        process.started.close()
