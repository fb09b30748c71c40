"""The process that workers are forked from: what they get of it, how it learns and tells their ends, and its own."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import newborn
import psutil
import pytest
from open_files import room_for

from ghostserve.workers.group import WorkerGroup
from ghostserve.workers.messages import Hello, Shutdown
from ghostserve.workers.nursery import Child, Nursery
from ghostserve.workers.started import Exited

PATIENCE = 20.0
HERE = {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}


@contextmanager
def nursery_that(prepare: str = "nothing", **environment: str) -> Iterator[Nursery]:
    nursery = Nursery("newborn:live", f"newborn:{prepare}", {**HERE, **environment})
    try:
        yield nursery
    finally:
        nursery.close()


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    with nursery_that() as nursery:
        yield nursery


class Worker:
    """A child and our end of its channel."""

    def __init__(self, nursery: Nursery, argument: str, **more: object) -> None:
        self.channel, theirs = socket.socketpair()
        self.channel.settimeout(PATIENCE)
        with theirs:
            self.child: Child = nursery.start(theirs, argument.encode(), **{"environment": {}} | more)

    def begun(self) -> "Worker":
        assert self.channel.recv(1) == b"x"
        return self

    def end(self) -> str:
        exited = self.child.ended(PATIENCE)
        assert exited is not None
        assert self.child.ended() == exited, "and it stays so"
        self.close()
        return str(exited)

    def close(self) -> None:
        self.child.close()
        self.channel.close()


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_worker_has_what_it_was_meant_to_have_and_nothing_else(
    nursery: Nursery, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in "ab":
        (tmp_path / name).write_text(f"content of {name}")
    older = Worker(nursery, "wait").begun()  # the nursery has descriptors for it
    monkeypatch.chdir(tmp_path)
    environment = {b"ONLY": b"this", b"ODD": b"\xff", b"EMPTY": b""}
    with open("a") as a, open("b") as b:
        worker = Worker(nursery, "tell", descriptors=[b.fileno(), a.fileno()], environment=environment)
    told = json.loads(worker.channel.recv(1 << 16))
    assert worker.end() == "exited with 0"
    assert told["content"] == ["content of b", "content of a"]
    assert len(told["open"]) == 3 + 1 + 2, "standard streams, channel, descriptors"
    assert set(told["descriptors"]) < set(told["open"])
    assert told["environment"] == {"ONLY": "this", "ODD": "\udcff", "EMPTY": ""}
    assert told["folder"] == str(tmp_path)
    assert told["group"] == told["pid"], "a terminal's Ctrl-C does not reach it"
    assert told["session"] == os.getsid(0)
    assert told["term"], "a service manager's SIGTERM is the coordinator's"
    assert told["threads"] == 1
    assert (told["name"], psutil.Process(nursery.pid).name()) == ("ghost-worker", "ghost-nursery")
    older.channel.close()
    assert older.end() == "exited with 0"


def test_a_folder_that_is_gone_is_a_folder_too(
    nursery: Nursery, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert Worker(nursery, "exit 4").end() == "exited with 4"


@pytest.mark.parametrize(
    ("argument", "how"), [("exit 0", "exited with 0"), ("exit 7", "exited with 7"), ("raise", "exited with 1")]
)
def test_how_a_worker_ends(nursery: Nursery, argument: str, how: str) -> None:
    assert Worker(nursery, argument).end() == how


def test_a_worker_that_is_killed(nursery: Nursery) -> None:
    worker = Worker(nursery, "sleep").begun()
    assert worker.child.pid == psutil.Process(worker.child.pid).pid
    assert worker.child.ended(0.05) is None
    worker.child.kill()
    assert worker.end() == "killed by SIGKILL"
    worker.child.kill()  # does no harm
    stopped = Worker(nursery, "sleep").begun()
    os.kill(stopped.child.pid, signal.SIGSTOP)
    stopped.child.kill()
    assert stopped.end() == "killed by SIGKILL"


def test_many_come_and_go_and_nothing_stays(nursery: Nursery) -> None:
    process, me = psutil.Process(nursery.pid), psutil.Process()
    until(lambda: not process.children())  # other tests'
    owned = process.num_fds(), process.num_threads(), me.num_fds()
    for round_ in range(10):
        workers = [Worker(nursery, "exit 0" if i % 2 else "wait") for i in range(6)]
        for worker in workers[::2]:
            worker.begun().channel.close()
        assert {worker.end() for worker in workers} == {"exited with 0"}, round_
    until(lambda: (process.num_fds(), process.num_threads(), me.num_fds()) == owned)
    assert owned[1] == 1
    assert process.children() == []


def test_where_the_nursery_can_not_fork_a_worker_ends_at_once(tmp_path: Path) -> None:
    obstacle = tmp_path / "no more"
    with nursery_that("without_forks", **{newborn.REFUSE: str(obstacle)}) as nursery:
        living = Worker(nursery, "sleep").begun()
        obstacle.touch()
        refused = Worker(nursery, "sleep")
        assert refused.end() == "the system refuses another process: Resource temporarily unavailable"
        assert refused.child.pid == 0
        obstacle.unlink()
        assert Worker(nursery, "exit 0").end() == "exited with 0"
        assert living.child.ended() is None
        living.child.kill()
        assert living.end() == "killed by SIGKILL"


def test_where_the_nursery_is_out_of_files_a_worker_ends_at_once() -> None:
    with nursery_that() as nursery:
        living = Worker(nursery, "sleep").begun()
        process = psutil.Process(nursery.pid)
        before = process.rlimit(psutil.RLIMIT_NOFILE)
        ends = []
        while not ends or ends[-1] != "exited with 0":
            process.rlimit(psutil.RLIMIT_NOFILE, (len(ends), before[1]))
            ends.append(Worker(nursery, "exit 0", descriptors=[0]).end())
            assert len(ends) < 40
        assert ends[0] == "it was never started: the nursery that forks workers has no room for it or has ended"
        assert set(ends[1:-1]) <= {ends[0], "the system refuses another process: Too many open files"}
        assert len(set(ends)) == 3, "at the request, at what watches the process, and room enough"
        process.rlimit(psutil.RLIMIT_NOFILE, before)
        assert Worker(nursery, "exit 0").end() == "exited with 0"
        assert living.child.ended() is None
        living.child.kill()
        assert living.end() == "killed by SIGKILL"


@pytest.mark.parametrize("more", range(9))
def test_where_this_process_is_out_of_files_a_worker_ends_at_once(nursery: Nursery, more: int) -> None:
    """Wherever the files run out: at the channel, at the request, at what watches it; enough at last."""
    assert nursery.pid
    me = psutil.Process()
    owned = me.num_fds()
    group = WorkerGroup[Hello](lambda channel: nursery.start(channel, b"sleep", environment={}), Hello, Shutdown())
    living = group.spawn()
    until(lambda: group.pid(living))
    with room_for(more):
        other = group.spawn()
        until(lambda: group.pid(other) or not group.running(other))
        happened = group.poll(0)
    if more < 7:
        assert happened == [(other, Exited(0, "the system refuses another process: Too many open files"))]
        assert group.pid(other) == 0
    else:
        assert happened == []
    assert group.running(living)
    for worker in group.workers:
        group.kill(worker)
    group.close()
    assert me.num_fds() == owned


def test_a_newborn_that_can_not_be_watched_is_ended(tmp_path: Path) -> None:
    """The files run out between the request and the birth; whoever asks first finds it out, and it is reported once."""
    end = tmp_path / "imported"
    with nursery_that("slowly", **{newborn.SLOW: str(end)}) as nursery:
        group = WorkerGroup[Hello](lambda channel: nursery.start(channel, b"sleep", environment={}), Hello, Shutdown())
        worker = group.spawn()
        assert group.poll(0.05) == []
        end.touch()
        with room_for(0):
            time.sleep(0.5)
            assert group.pid(worker) == 0
            assert group.poll(PATIENCE) == [
                (worker, Exited(0, "the system refuses another process: Too many open files"))
            ]
        assert not group.alive(worker)
        until(lambda: not psutil.Process(nursery.pid).children())
        group.close()


def test_a_group_that_closes_does_not_wait_for_the_unborn(tmp_path: Path) -> None:
    end = tmp_path / "imported"
    with nursery_that("slowly", **{newborn.SLOW: str(end)}) as nursery:
        group = WorkerGroup[Hello](lambda channel: nursery.start(channel, b"sleep", environment={}), Hello, Shutdown())
        process = psutil.Process(nursery.pid)
        assert group.alive(group.spawn())
        group.close()
        assert not end.exists(), "it still imports"
        end.touch()
        assert Worker(nursery, "exit 0").end() == "exited with 0"
        assert nursery.pid == process.pid
        assert process.children() == []


def test_one_that_is_called_off_before_it_began_never_does(tmp_path: Path) -> None:
    end = tmp_path / "imported"
    with nursery_that("slowly", **{newborn.SLOW: str(end)}) as nursery:
        early, late = Worker(nursery, "sleep"), Worker(nursery, "tell")
        assert early.child.ended(0.05) is None
        assert early.child.pid == 0
        early.child.kill()
        assert early.end() == "it was called off before it began"
        end.touch()
        told = json.loads(late.channel.recv(1 << 16))
        assert late.end() == "exited with 0"
        assert told["pid"] == late.child.pid
        assert psutil.Process(nursery.pid).children() == []


def test_the_nursery_dies_and_its_workers_live_on() -> None:
    """They can be killed and their end is noticed; the next worker comes from a new nursery."""
    with nursery_that() as nursery:
        worker, other = Worker(nursery, "wait").begun(), Worker(nursery, "sleep").begun()
        first = nursery.pid
        os.kill(first, signal.SIGKILL)
        until(lambda: not psutil.pid_exists(first) or psutil.Process(first).status() == psutil.STATUS_ZOMBIE)
        assert worker.child.ended(0.1) is None
        worker.channel.close()
        assert worker.end() == "it ended, and the nursery that would know how had ended before"
        other.child.kill()
        assert other.end() == "it ended, and the nursery that would know how had ended before"
        assert Worker(nursery, "exit 5").end() == "exited with 5"
        assert nursery.pid != first


def test_the_nursery_dies_at_its_imports() -> None:
    """Whoever was asked for ends; each new one is another try."""
    with nursery_that("broken") as nursery:
        for _ in range(2):
            end = Worker(nursery, "exit 0").end()
            assert end == "it was never started: the nursery that forks workers has no room for it or has ended"


def test_it_says_what_a_fork_would_break(capfd: pytest.CaptureFixture[str]) -> None:
    with nursery_that("with_a_thread") as nursery:
        assert Worker(nursery, "exit 0").end() == "exited with 0"
    assert re.search(
        "the nursery has threads after its imports: python.*, python.*: workers may hang", capfd.readouterr().err
    )
    with nursery_that() as nursery:
        assert Worker(nursery, "exit 0").end() == "exited with 0"
    assert capfd.readouterr().err == ""


def test_closing_it_ends_every_worker() -> None:
    nursery = Nursery("newborn:live", "newborn:nothing", HERE)
    worker = Worker(nursery, "sleep").begun()
    pids = nursery.pid, worker.child.pid
    os.kill(worker.child.pid, signal.SIGSTOP)
    nursery.close()
    until(lambda: not any(map(psutil.pid_exists, pids)))
    assert worker.end() == "killed by SIGKILL"
    nursery.close()
    assert Worker(nursery, "exit 0").end() == "exited with 0", "another start makes a new one"
    nursery.close()


PARENT = """
import os, sys, time, signal, socket
from ghostserve.workers.nursery import Nursery
nursery = Nursery("newborn:live", "newborn:nothing", {})
pids, kept = [nursery.pid], []
for _ in range(3):
    ours, theirs = socket.socketpair()
    kept.append((ours, nursery.start(theirs, b"sleep", environment={})))
    theirs.close()
    ours.recv(1)
    pids.append(kept[-1][1].pid)
os.kill(pids[1], signal.SIGSTOP)
fork = os.fork()
if fork == 0:  # has all that its parent has
    time.sleep(600)
print(*pids, fork, flush=True)
ENDING
"""


@pytest.mark.parametrize(
    ("ending", "how"),
    [("time.sleep(600)", -9), ("sys.exit(3)", 3), ("raise SystemError", 1), ("os._exit(2)", 2)],
)
def test_no_worker_outlives_the_process_that_asked_for_it(ending: str, how: int) -> None:
    """However that ends, also with a fork of it alive and a worker stopped; and the fork harms nobody."""
    script = PARENT.replace("ENDING", ending)
    process = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ | HERE
    )
    assert process.stdout is not None
    *pids, fork = map(int, process.stdout.readline().split())
    try:
        assert len(pids) == 4
        if how == -9:
            assert all(map(psutil.pid_exists, [*pids, fork]))
            process.kill()
        assert process.wait(PATIENCE) == how
        until(lambda: not any(map(psutil.pid_exists, pids)))
        assert psutil.pid_exists(fork)
    finally:
        os.kill(fork, signal.SIGKILL)
        process.communicate()


def test_a_fork_of_this_process_has_a_nursery_of_its_own(nursery: Nursery) -> None:
    mine, (read, write) = nursery.pid, os.pipe()
    fork = os.fork()
    if fork == 0:
        try:
            os.write(write, f"{nursery.pid} {Worker(nursery, 'exit 6').end()}".encode())
            nursery.close()
        finally:
            os._exit(0)
    os.waitpid(fork, 0)
    other, _, end = os.read(read, 100).decode().partition(" ")
    os.close(read)
    os.close(write)
    assert end == "exited with 6"
    assert int(other) != mine
    assert nursery.pid == mine
    assert Worker(nursery, "exit 0").end() == "exited with 0"
