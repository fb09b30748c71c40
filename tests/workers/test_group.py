"""The worker processes of an engine, where the system refuses another one."""

import errno
import os
import resource
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import psutil
import pytest

from ghostserve.workers.group import Exited, WorkerGroup
from ghostserve.workers.messages import Hello, Shutdown


class Sleeper:
    """A process that does nothing until it is killed."""

    def __init__(self, channel: socket.socket) -> None:
        command = [sys.executable, "-c", "import time; time.sleep(60)"]
        self._popen = subprocess.Popen(command, pass_fds=[channel.fileno()])
        self.pid = self._popen.pid

    def kill(self) -> None:
        self._popen.kill()

    def wait(self, timeout: float | None = None) -> int | None:
        try:
            return self._popen.wait(timeout)
        except subprocess.TimeoutExpired:
            return None


@pytest.fixture
def group() -> Iterator[WorkerGroup[Hello]]:
    group = WorkerGroup[Hello](Sleeper, Hello, Shutdown())
    yield group
    for worker in group.workers:
        group.kill(worker)
    group.close()


@contextmanager
def room_for(more: int) -> Iterator[None]:
    """This process may open so many more files, and no others."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    first = os.open("/dev/null", os.O_RDONLY)  # the lowest number that is free
    held = []
    try:
        while (number := os.open("/dev/null", os.O_RDONLY)) < first + 200:  # no gaps below the limit
            held.append(number)
        os.close(number)
        for _ in range(more):
            os.close(held.pop())
        resource.setrlimit(resource.RLIMIT_NOFILE, (number, before[1]))
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
        for number in [first, *held]:
            os.close(number)


@pytest.mark.parametrize("more", [0, 1, 2, 3])
def test_without_open_files_a_worker_ends_at_once_and_the_others_live(group: WorkerGroup[Hello], more: int) -> None:
    """Wherever the files run out: at the channel, at the process, at what watches it."""
    living = group.spawn()
    me = psutil.Process()
    owned = me.num_fds(), len(me.children())
    with room_for(more):
        refused = group.spawn()
        happened = group.poll(None)
    assert happened == [(refused, Exited(0, "the system refuses another process: Too many open files"))]
    assert str(happened[0][1]) == "the system refuses another process: Too many open files"
    assert (me.num_fds(), len(me.children())) == owned
    assert group.running(living)
    assert not group.alive(refused)
    assert group.pid(refused) == 0
    assert not group.send(refused, Shutdown())
    assert group.poll(0) == [], "it is reported once"
    assert group.alive(group.spawn()), "and the next one comes"


def test_with_room_enough_there_is_a_worker(group: WorkerGroup[Hello]) -> None:
    with room_for(8):
        assert group.alive(group.spawn())


def test_a_process_that_can_not_be_watched_is_ended(group: WorkerGroup[Hello], monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(pid: int) -> int:
        raise OSError(errno.EMFILE, "Too many open files")

    before = {child.pid for child in psutil.Process().children()}
    monkeypatch.setattr(os, "pidfd_open", refuse)
    refused = group.spawn()
    assert [worker for worker, _ in group.poll(None)] == [refused]
    assert {child.pid for child in psutil.Process().children()} <= before
