"""The worker processes of one engine: start, talk, watch, end. Mechanism only; decisions are the machine's."""

import os
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from ghostserve.engine.channel import Channel, ChannelClosedError
from ghostserve.engine.launch import WorkerConfig
from ghostserve.engine.messages import FromWorker, Shutdown

__all__ = ["Exited", "WorkerGroup"]

_GRACE = 5.0
# gloo's own connections stay on this machine; what torch logs in C++ about a lost peer is no news here.
_ENVIRONMENT = {"GLOO_SOCKET_IFNAME": "lo", "TORCH_CPP_LOG_LEVEL": "FATAL"}


@dataclass(frozen=True)
class Exited:
    """A worker's process has ended; `status` as `Popen.returncode` (negative: the signal)."""

    status: int

    def __str__(self) -> str:
        if self.status < 0:
            return f"killed by {signal.Signals(-self.status).name}"
        return f"exited with {self.status}"


@dataclass(frozen=True)
class _Process:
    popen: subprocess.Popen[bytes]
    channel: Channel[FromWorker]
    pidfd: int


class WorkerGroup:
    """Numbers workers 0, 1, 2, ... as they are started; a number is never used again.

    Everything must be called from one thread: workers die with the thread that started them.
    """

    def __init__(self, config: WorkerConfig) -> None:
        self._config = config
        store = [] if config.store_fd is None else [config.store_fd]
        self._inherited = [*config.arena_fds, *config.weight_fds, *store]
        self._processes: dict[int, _Process] = {}
        self._next = 0
        self._selector = selectors.DefaultSelector()
        self._wake_read, self._wake_write = socket.socketpair()
        self._wake_read.setblocking(False)
        self._wake_write.setblocking(False)
        self._selector.register(self._wake_read, selectors.EVENT_READ, None)

    def spawn(self) -> int:
        """Start one worker; it says `Hello` when its imports are done."""
        ours, theirs = socket.socketpair()
        with theirs, tempfile.TemporaryFile() as file:
            file.write(msgspec.msgpack.encode(self._config))
            file.seek(0)
            fds = [theirs.fileno(), file.fileno()]
            popen = subprocess.Popen(
                [sys.executable, "-m", "ghostserve.engine.worker", *map(str, fds), str(os.getpid())],
                stdin=subprocess.DEVNULL,
                pass_fds=[*fds, *self._inherited],
                env={
                    **os.environ,
                    **_ENVIRONMENT,
                    **self._config.environment,
                    "OMP_NUM_THREADS": str(self._config.threads),
                },
            )
        worker = self._next
        self._next += 1
        process = _Process(popen, Channel(ours, FromWorker), os.pidfd_open(popen.pid))
        self._processes[worker] = process
        self._selector.register(process.channel, selectors.EVENT_READ, worker)
        self._selector.register(process.pidfd, selectors.EVENT_READ, worker)
        return worker

    def pid(self, worker: int) -> int:
        return self._processes[worker].popen.pid

    def alive(self, worker: int) -> bool:
        return worker in self._processes

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

    def poll(self, timeout: float | None) -> list[tuple[int, FromWorker | Exited]]:
        """What the workers said, and which of them ended, within `timeout` seconds (None: until something comes)."""
        happened: list[tuple[int, FromWorker | Exited]] = []
        ended: list[int] = []
        for key, _ in self._selector.select(timeout):
            if key.fileobj is self._wake_read:
                self._wake_read.recv(4096)
                continue
            worker = key.data
            process = self._processes.get(worker)
            if process is None:
                continue
            if key.fileobj == process.pidfd:
                ended.append(worker)
                continue
            happened += self._read(worker, process)
        for worker in ended:
            process = self._processes[worker]
            happened += self._read(worker, process)  # its last words
            happened.append((worker, Exited(process.popen.wait())))
            self._forget(worker)
        return happened

    def kill(self, worker: int) -> None:
        """SIGKILL and reap; returns when the process is gone. Nothing is reported for it afterwards."""
        process = self._processes.get(worker)
        if process is not None:
            process.popen.kill()
            process.popen.wait()
            self._forget(worker)

    def close(self) -> None:
        """Ask all workers to end, kill those that have not after five seconds, and give everything back."""
        for worker in list(self._processes):
            self.send(worker, Shutdown())
        deadline = time.monotonic() + _GRACE
        for worker, process in list(self._processes.items()):
            try:
                process.popen.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.popen.kill()
                process.popen.wait()
            self._forget(worker)
        self._selector.close()
        self._wake_read.close()
        self._wake_write.close()

    @property
    def workers(self) -> Sequence[int]:
        return tuple(self._processes)

    def _read(self, worker: int, process: _Process) -> list[tuple[int, FromWorker | Exited]]:
        try:
            return [(worker, message) for message in process.channel.receive_ready()]
        except ChannelClosedError:
            # The process may live on without its channel; then it is of no use, and its end must come.
            if process.channel.fileno() in self._selector.get_map():
                self._selector.unregister(process.channel)
                process.popen.kill()
            return []

    def _forget(self, worker: int) -> None:
        process = self._processes.pop(worker)
        if process.channel.fileno() in self._selector.get_map():
            self._selector.unregister(process.channel)
        self._selector.unregister(process.pidfd)
        process.channel.close()
        os.close(process.pidfd)
