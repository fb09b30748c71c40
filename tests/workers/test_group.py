"""The worker processes of an engine, where the system refuses another one."""

import errno
import os
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import msgspec
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
    group.reap()
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


def closer(channel: socket.socket) -> Watched:
    """A process that closes its end of the channel and lives on."""
    command = [sys.executable, "-c", f"import os, time; os.close({channel.fileno()}); time.sleep(60)"]
    process = subprocess.Popen(command, pass_fds=[channel.fileno()])
    return Watched(process.pid, lambda: threading.Timer(0.5, process.kill).start(), process.wait)


def test_who_closes_its_channel_has_ended_though_its_process_takes_longer() -> None:
    """As on a GPU, whose driver takes a second for the memory of a process that was killed."""
    group = WorkerGroup[Hello](closer, Hello, Shutdown())
    try:
        worker = group.spawn()
        pid = group.pid(worker)
        assert group.poll(10) == [(worker, Exited(0, "its channel has ended"))]
        assert psutil.Process(pid).status() != psutil.STATUS_ZOMBIE, "it is there yet"
        assert (group.alive(worker), group.running(worker), group.pid(worker)) == (False, False, 0)
        assert not group.send(worker, Shutdown())
        group.reap()
        assert not psutil.pid_exists(pid)
        assert group.poll(0) == [], "it is reported once"
    finally:
        group.close()


def test_who_is_killed_is_gone_for_everyone_and_reaped_in_time(group: WorkerGroup[Hello]) -> None:
    owned = psutil.Process().num_fds()
    worker = group.spawn()
    pid = group.pid(worker)
    group.kill(worker)
    assert (group.alive(worker), group.workers) == (False, ())
    deadline = time.monotonic() + 10
    while psutil.Process().num_fds() > owned:
        assert group.poll(0.1) == [], "nothing is reported for who was killed"
        assert time.monotonic() < deadline, "what it takes to watch it was not given back"
    assert not psutil.pid_exists(pid)


def test_words_before_the_end_come_before_it() -> None:
    def speaker(channel: socket.socket) -> Watched:
        said = msgspec.msgpack.encode(Hello(7))
        told = f"import os; os.write({channel.fileno()}, {struct.pack('<I', len(said)) + said!r})"
        process = subprocess.Popen([sys.executable, "-c", told], pass_fds=[channel.fileno()])
        return Watched(process.pid, process.kill, process.wait)

    group = WorkerGroup[Hello](speaker, Hello, Shutdown())
    try:
        worker = group.spawn()
        happened: list[tuple[int, Hello | Exited]] = []
        while len(happened) < 2:
            happened += group.poll(10)
        assert happened == [(worker, Hello(7)), (worker, Exited(0))]
    finally:
        group.close()
