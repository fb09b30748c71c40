"""The worker processes of an engine, where the system refuses another one."""

import errno
import os
import socket
import subprocess
import sys
from collections.abc import Iterator

import psutil
import pytest
from open_files import room_for

from ghostserve.workers.group import Exited, WorkerGroup
from ghostserve.workers.messages import Hello, Shutdown
from ghostserve.workers.started import Watched


def sleeper(channel: socket.socket) -> Watched:
    """A process that does nothing until it is killed."""
    command = [sys.executable, "-c", "import time; time.sleep(60)"]
    process = subprocess.Popen(command, pass_fds=[channel.fileno()])
    return Watched(process.pid, process.kill, process.wait)


@pytest.fixture
def group() -> Iterator[WorkerGroup[Hello]]:
    group = WorkerGroup[Hello](sleeper, Hello, Shutdown())
    yield group
    for worker in group.workers:
        group.kill(worker)
    group.close()


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
