"""One clean process that has done the imports, and that all workers of this process are forked from.

A worker's imports take seconds, a fork takes milliseconds. The nursery (`nursery_process`) is started with the first
worker and ends with this process. It gets a request as one packet on an unnamed socket, with what the worker inherits
as descriptors; nothing that is asked of it is waited for here. What becomes of a worker is told on a socket of its own:
first by itself (its pid, with a pidfd of it), at the end by the nursery, whose child it is (its exit status).
"""

import atexit
import errno
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress

import msgspec

from ghostserve.workers.started import Exited, readable

__all__ = ["Birth", "Born", "Child", "Ended", "Fate", "Nursery", "Refused"]

_STATUS_SECONDS = 1.0  # from a process's end until the nursery, which only reaps, says how it was
_END_SECONDS = 1.0  # for the nursery to end its children; one that is at its imports does not listen
_NEVER = "it was never started: the nursery that forks workers has no room for it or has ended"
_UNSEEN = "it ended, and the nursery that would know how had ended before"


class Birth(msgspec.Struct, frozen=True):
    """What a worker is born with beside its descriptors."""

    environment: list[tuple[bytes, bytes]]
    argument: bytes


class Born(msgspec.Struct, frozen=True, tag=True):
    """Said by the worker, with its pidfd."""

    pid: int


class Refused(msgspec.Struct, frozen=True, tag=True):
    """The nursery could not fork."""

    number: int
    """The errno."""


class Ended(msgspec.Struct, frozen=True, tag=True):
    """`status` as `Popen.returncode`."""

    status: int


Fate = Born | Refused | Ended
_decoder = msgspec.msgpack.Decoder(Fate)


class Child:
    """A worker that the nursery was asked for: a `Started`."""

    def __init__(self, fate: socket.socket) -> None:
        """Raises `OSError` where the system refuses what it takes to watch it."""
        self._fate = fate
        self._pid, self._pidfd = 0, -1
        self._exited: Exited | None = None
        self._news = select.epoll()  # of the fate until it is born, then of its end
        self._news.register(fate, select.EPOLLIN)

    @property
    def pid(self) -> int:
        if not self._pid and self._exited is None and readable(self._fate.fileno(), 0):
            self._hear_birth()
        return self._pid

    def fileno(self) -> int:
        return self._news.fileno()

    def ended(self, timeout: float | None = 0.0) -> Exited | None:
        until = None if timeout is None else time.monotonic() + timeout
        while self._exited is None and readable(self.fileno(), None if until is None else until - time.monotonic()):
            if self._pid:
                self._exited = self._hear_end()
            else:
                self._hear_birth()
        return self._exited

    def kill(self) -> None:
        if self._exited is not None:
            return
        if self.pid:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
        else:
            self._exited = Exited(0, "it was called off before it began")
            self._hang_up()

    def close(self) -> None:
        self._news.close()
        self._hang_up()
        self._fate.close()
        if self._pid:
            os.close(self._pidfd)

    def _hang_up(self) -> None:
        """The nursery kills whose fate nobody listens to, and does not fork for it."""
        with suppress(OSError):  # it has hung up first
            self._fate.shutdown(socket.SHUT_RDWR)  # closing would not do: a fork of this process may have it too

    def _hear_birth(self) -> None:
        told, descriptors = self._hear()
        match told:
            case Born(pid) if descriptors:
                self._pid, self._pidfd = pid, descriptors[0]
                self._news.unregister(self._fate)
                self._news.register(self._pidfd, select.EPOLLIN)
            case Born():  # without a way to watch it
                self._exited = Exited.refused(OSError(errno.EMFILE, os.strerror(errno.EMFILE)))
                self._hang_up()
            case Refused(number):
                self._exited = Exited.refused(OSError(number, os.strerror(number)))
            case Ended(status):
                self._exited = Exited(status)
            case None:
                self._exited = Exited(0, _NEVER)

    def _hear_end(self) -> Exited:
        told = self._hear()[0] if readable(self._fate.fileno(), _STATUS_SECONDS) else None
        return Exited(told.status) if isinstance(told, Ended) else Exited(0, _UNSEEN)

    def _hear(self) -> tuple[Fate | None, list[int]]:
        """What was said next, and the descriptors that came with it; None where nobody is left to say anything."""
        try:
            data, descriptors, _, _ = socket.recv_fds(self._fate, 64, 1, socket.MSG_CMSG_CLOEXEC)
        except ConnectionResetError:
            return None, []
        return (_decoder.decode(data) if data else None), descriptors


class Nursery:
    """Starts itself with the first worker that is asked for, and anew if it has died. Of any thread."""

    def __init__(self, entry: str, prepare: str, environment: Mapping[str, str]) -> None:
        """`entry`: "module:function", what a worker runs: `(channel, argument, descriptors) -> exit code`.

        `prepare`: "module:function", called once before any worker is forked; it must start no thread. `environment`:
        what the nursery is started with beside this process's; what libraries read when they are loaded must be there.
        """
        self._arguments = [entry, prepare]
        self._environment = dict(environment)
        self._lock = threading.Lock()
        self._owner = 0
        self._process: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None

    @property
    def pid(self) -> int:
        """The nursery's, which is started if there is none."""
        with self._lock:
            return self._living()[0].pid

    def start(
        self,
        channel: socket.socket,
        argument: bytes,
        *,
        descriptors: Sequence[int] = (),
        environment: Mapping[bytes, bytes],
    ) -> Child:
        """Ask for a worker; returns before there is one. Its working directory is this process's present one.

        `descriptors`: what it inherits beside `channel`. `environment`: all of its environment. Raises `OSError` where
        the system refuses what it takes to ask.
        """
        with self._lock, ExitStack() as stack:
            fate, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            undo = stack.enter_context(ExitStack())
            undo.callback(fate.close)
            stack.enter_context(theirs)
            birth = _sealed(msgspec.msgpack.encode(Birth(list(environment.items()), argument)))
            stack.callback(os.close, birth)
            folder = os.open(".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            stack.callback(os.close, folder)
            child = Child(fate)
            self._send([theirs.fileno(), birth, folder, channel.fileno(), *descriptors])
            undo.pop_all()
            return child

    def close(self) -> None:
        """End it and all workers; another start makes a new one."""
        with self._lock:
            process, control = self._process, self._control
            self._process = self._control = None
            if process is None or control is None or self._owner != os.getpid():
                return
            control.shutdown(socket.SHUT_RDWR)  # a fork of this process may have the socket too
            control.close()
            try:
                process.wait(_END_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def _send(self, descriptors: list[int]) -> None:
        try:
            socket.send_fds(self._living()[1], [b"\0"], descriptors, socket.MSG_DONTWAIT)
        except (BrokenPipeError, ConnectionResetError):  # it has died since it was looked at
            self._end()
            socket.send_fds(self._living()[1], [b"\0"], descriptors, socket.MSG_DONTWAIT)

    def _living(self) -> tuple[subprocess.Popen[bytes], socket.socket]:
        """The nursery that is there, or a new one."""
        if self._owner != os.getpid():  # a fork of the process that it belongs to
            self._process = self._control = None
        if self._process is not None and self._process.poll() is not None:
            self._end()
        if self._process is None or self._control is None:
            self._process, self._control = self._begin()
            if self._owner != os.getpid():
                atexit.register(self.close)
            self._owner = os.getpid()
        return self._process, self._control

    def _begin(self) -> tuple[subprocess.Popen[bytes], socket.socket]:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs, ExitStack() as undo:
            undo.callback(ours.close)
            module = "ghostserve.workers.nursery_process"
            process = subprocess.Popen(
                [sys.executable, "-m", module, str(theirs.fileno()), str(os.getpid()), *self._arguments],
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                env={**os.environ, **self._environment},
                process_group=0,  # a Ctrl-C at the terminal is the coordinator's to handle
            )
            undo.pop_all()
            return process, ours

    def _end(self) -> None:
        """It is dead or dying: its workers live on, each with a pidfd that we have."""
        process, control = self._process, self._control
        self._process = self._control = None
        if process is not None and control is not None:
            control.close()
            process.kill()
            process.wait()


def _sealed(content: bytes) -> int:
    """A descriptor of memory that holds `content`, to be read from its start."""
    descriptor = os.memfd_create("ghostserve-birth", os.MFD_CLOEXEC)
    with open(descriptor, "wb", closefd=False) as file:
        file.write(content)
    os.lseek(descriptor, 0, os.SEEK_SET)
    return descriptor
