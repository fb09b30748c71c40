"""The nursery's process: see `nursery`. It imports, then forks, reaps and says how its children ended.

    python -m ghostserve.workers.nursery_process CONTROL_FD PARENT_PID ENTRY PREPARE

It must stay a process with one thread and no CUDA: a fork copies neither. When its parent is gone it kills all of its
children, those too that are stopped, and ends.
"""

import errno
import gc
import importlib
import os
import selectors
import signal
import socket
import sys
import traceback
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, NoReturn

import msgspec

from ghostserve.workers.nursery import Birth, Born, Ended, Fate, Refused

__all__ = ["Entry", "main"]

Entry = Callable[[socket.socket, bytes, Sequence[int]], int]
"""What a worker runs: its channel, its argument, its descriptors; gives the exit code."""

_MOST_DESCRIPTORS = 253  # that one packet may carry: SCM_MAX_FD


class _Process:
    def __init__(self, control: socket.socket, parent: int, entry: Entry) -> None:
        """`parent`: a pidfd."""
        self._control, self._parent, self._entry = control, parent, entry
        self._children: dict[int, tuple[int, socket.socket]] = {}
        """pidfd -> pid and the socket on which its fate is told."""
        self._selector = selectors.DefaultSelector()
        for source in (control.fileno(), parent):
            self._selector.register(source, selectors.EVENT_READ)

    def run(self) -> None:
        """Until the parent is gone; then no child is left."""
        while self._turn():
            continue
        for pid, _ in self._children.values():
            os.kill(pid, signal.SIGKILL)
        for pidfd in list(self._children):
            self._reap(pidfd)

    def _turn(self) -> bool:
        for key, _ in self._selector.select():
            if key.fd == self._parent:
                return False
            if key.fd in self._children:
                self._reap(key.fd)
            elif key.fd == self._control.fileno():
                if not self._receive():
                    return False
            elif key.data in self._children:  # nobody wants to know its fate any more
                os.kill(self._children[key.data][0], signal.SIGKILL)
                self._selector.unregister(key.fd)
        return True

    def _receive(self) -> bool:
        """One request; False at the end of them."""
        try:
            data, descriptors, flags, _ = socket.recv_fds(
                self._control, 1, _MOST_DESCRIPTORS, socket.MSG_CMSG_CLOEXEC | socket.MSG_DONTWAIT
            )
        except BlockingIOError:
            return True
        if not data:
            return False
        if not descriptors:  # not even the socket to say so on: the asker sees that it is closed
            return True
        fate, others = socket.socket(fileno=descriptors[0]), descriptors[1:]
        with ExitStack() as undo:
            undo.callback(fate.close)
            try:
                if flags & socket.MSG_CTRUNC:
                    raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
                if not _is_called_off(fate):
                    self._fork(fate, others)
                    undo.pop_all()
            except OSError as error:
                _tell(fate, Refused(error.errno or errno.EAGAIN))
            for descriptor in others:
                os.close(descriptor)
        return True

    def _fork(self, fate: socket.socket, descriptors: list[int]) -> None:
        pid = os.fork()
        if pid == 0:
            self._become_a_worker(fate, descriptors)
        try:
            pidfd = os.pidfd_open(pid)
        except OSError:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            raise
        self._children[pidfd] = pid, fate
        self._selector.register(pidfd, selectors.EVENT_READ)
        self._selector.register(fate, selectors.EVENT_READ, pidfd)

    def _reap(self, pidfd: int) -> None:
        pid, fate = self._children.pop(pidfd)
        self._selector.unregister(pidfd)
        os.close(pidfd)
        if fate.fileno() in self._selector.get_map():
            self._selector.unregister(fate)
        _, status = os.waitpid(pid, 0)
        with fate:
            _tell(fate, Ended(os.waitstatus_to_exitcode(status)))

    def _become_a_worker(self, fate: socket.socket, descriptors: list[int]) -> NoReturn:
        code = 1
        try:
            os.setpgid(0, 0)
            _be_called("ghost-worker")
            self._forget()
            birth, folder, channel, *inherited = descriptors
            with open(birth, "rb") as file:
                born = msgspec.msgpack.decode(file.read(), type=Birth)
            os.environb.clear()
            os.environb.update(born.environment)
            os.fchdir(folder)
            os.close(folder)
            pidfd = os.pidfd_open(os.getpid())
            socket.send_fds(fate, [msgspec.msgpack.encode(Born(os.getpid()))], [pidfd])
            os.close(pidfd)
            fate.close()
            code = self._entry(socket.socket(fileno=channel), born.argument, inherited)
        except BaseException:  # noqa: BLE001 - nothing may go on as if this were the nursery
            traceback.print_exc()
        finally:
            with suppress(OSError, ValueError):
                sys.stdout.flush()
                sys.stderr.flush()
            # Skip interpreter teardown: destroying a library's threads there can hang, and nothing is left to clean.
            os._exit(code)

    def _forget(self) -> None:
        """In a worker: what is the nursery's."""
        self._selector.close()
        self._control.close()
        os.close(self._parent)
        for pidfd, (_, fate) in self._children.items():
            os.close(pidfd)
            fate.close()


def _tell(fate: socket.socket, told: Fate) -> None:
    with suppress(OSError):  # nobody wants to know any more
        fate.send(msgspec.msgpack.encode(told), socket.MSG_DONTWAIT)


def _is_called_off(fate: socket.socket) -> bool:
    try:
        return fate.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) == b""
    except BlockingIOError:
        return False
    except OSError:
        return True


def _be_called(name: str) -> None:
    """For `ps` and `top`, at most 15 letters: a fork has its parent's command line."""
    Path("/proc/self/comm").write_text(name)


def _warn_of_what_a_fork_breaks() -> None:
    threads = [Path(task, "comm").read_text().strip() for task in Path("/proc/self/task").iterdir()]
    if len(threads) > 1:
        print(f"the nursery has threads after its imports: {', '.join(threads)}: workers may hang", file=sys.stderr)
    files = [os.readlink(file) for file in Path("/proc/self/fd").iterdir() if file.exists()]
    if any(file.startswith("/dev/nvidia") for file in files):
        print("the nursery has used CUDA in its imports: workers can't use it", file=sys.stderr)


def _find(name: str) -> Callable[..., Any]:
    """The function that "module:function" names."""
    module, _, function = name.partition(":")
    found: Callable[..., Any] = getattr(importlib.import_module(module), function)
    return found


def main(arguments: list[str]) -> None:
    """The process's entry point."""
    control, parent, entry, prepare = arguments
    # Service managers send it to every process of a service. Requests that run end first: the coordinator says when.
    # Workers inherit this.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    with suppress(ProcessLookupError):
        watched = os.pidfd_open(int(parent))
    if os.getppid() != int(parent):
        return
    run: Entry = _find(entry)
    _find(prepare)()
    _warn_of_what_a_fork_breaks()
    _be_called("ghost-nursery")
    # A worker's garbage collections need not look through what the imports have made, nor copy its pages.
    gc.collect()
    gc.freeze()
    _Process(socket.socket(fileno=int(control)), watched, run).run()


if __name__ == "__main__":
    main(sys.argv[1:])
    sys.stderr.flush()
    os._exit(0)
