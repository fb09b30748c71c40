"""An aborted collective returns garbage and no error: nothing of it may get out, whatever the threads' order."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from ghostserve.engine.communicator import CommunicatorError
from ghostserve.engine.fence import Fence
from ghostserve.workers.nccl import Progress

GARBAGE, RESULT = "garbage", "result"


class Device:
    """A fake NCCL: a collective hangs until its peers come, or until an abort ends it with garbage and no error."""

    def __init__(self) -> None:
        self.done = threading.Event()
        self.memory = "nothing"
        self.aborts = 0

    def peers_come(self) -> None:
        self.memory = RESULT
        self.done.set()

    def abort(self) -> None:
        self.aborts += 1
        if not self.done.is_set():
            self.memory = GARBAGE
            self.done.set()

    def synchronize(self) -> str:
        assert self.done.wait(10)
        return self.memory


class NoFence(Fence):
    """The twin: an abort, and nobody looks."""

    def check(self) -> None:
        return


def step(fence: Fence, device: Device, delivered: list[str]) -> None:
    """The worker's main thread."""
    try:
        found = device.synchronize()
        fence.check()
        delivered.append(found)
    except CommunicatorError:
        pass


def run(fence: Fence) -> list[str]:
    """A step hangs, then the group is released."""
    device, delivered = Device(), []
    fence.open(1, device.abort)
    main = threading.Thread(target=step, args=(fence, device, delivered))
    main.start()
    time.sleep(0.02)
    fence.raise_to(2)
    main.join(10)
    assert not main.is_alive()
    assert device.aborts == 1
    return delivered


def test_a_step_that_hangs_ends_and_delivers_nothing() -> None:
    assert run(Fence()) == []


def test_without_the_check_garbage_is_delivered() -> None:
    assert run(NoFence()) == [GARBAGE]


def test_the_fence_stands_before_the_abort_lets_anything_go() -> None:
    fence = Fence()

    def abort() -> None:
        with pytest.raises(CommunicatorError, match="epoch 1 was released at epoch 2"):
            fence.check()

    fence.open(1, abort)
    fence.raise_to(2)


def test_a_healthy_step_is_delivered_and_the_next_epoch_opens() -> None:
    fence, device = Fence(), Device()
    fence.open(1, device.abort)
    device.peers_come()
    delivered: list[str] = []
    step(fence, device, delivered)
    fence.raise_to(2)
    fence.close()
    assert device.aborts == 1
    with pytest.raises(CommunicatorError):
        fence.check()
    again = Device()
    fence.open(2, again.abort)
    again.peers_come()
    step(fence, again, delivered)
    assert delivered == [RESULT, RESULT]
    assert again.aborts == 0


def test_a_release_during_the_join_cuts_the_new_communicator_off() -> None:
    fence, device = Fence(), Device()
    fence.raise_to(3)
    with pytest.raises(CommunicatorError, match="epoch 2 was released at epoch 3"):
        fence.open(2, device.abort)
    assert device.aborts == 1


def test_an_older_release_changes_nothing() -> None:
    fence, device = Fence(), Device()
    fence.open(4, device.abort)
    fence.raise_to(4)
    fence.raise_to(2)
    fence.check()
    assert device.aborts == 0


def aborted_amid(fence: Fence, seconds: float) -> bool:
    """Whether a release's abort comes within `seconds` of a launch that is under way, or only when that has ended."""
    aborted = threading.Event()
    fence.open(1, aborted.set)
    receiver = threading.Thread(target=fence.raise_to, args=(2,))
    with fence.launching():
        receiver.start()
        amid = aborted.wait(seconds)
    receiver.join(10)
    assert aborted.is_set()
    return amid


class Impatient(Fence):
    """The twin: nobody says that it launches."""

    @contextmanager
    def launching(self) -> Iterator[None]:
        yield


def test_an_abort_waits_for_a_launch_under_way() -> None:
    assert not aborted_amid(Fence(launch_seconds=60), 0.1)


def test_an_abort_that_does_not_wait_comes_amid_the_launch() -> None:
    assert aborted_amid(Impatient(launch_seconds=60), 60)


def test_an_abort_ends_a_launch_that_hangs() -> None:
    assert aborted_amid(Fence(launch_seconds=0.1), 60)


def test_nothing_is_launched_behind_the_fence() -> None:
    fence = Fence()
    fence.open(1, lambda: None)
    fence.raise_to(2)
    with pytest.raises(CommunicatorError, match="epoch 1 was released at epoch 2"), fence.launching():
        pytest.fail("launched")


def test_closing_waits_for_an_abort_under_way_and_does_not_repeat_it() -> None:
    fence, began, calls = Fence(), threading.Event(), []

    def abort() -> None:
        calls.append("begun")
        began.set()
        time.sleep(0.05)
        calls.append("ended")

    fence.open(1, abort)
    receiver = threading.Thread(target=fence.raise_to, args=(2,))
    receiver.start()
    assert began.wait(10)
    fence.close()
    assert calls == ["begun", "ended"]
    receiver.join()
    fence.close()
    assert calls == ["begun", "ended"]


class Moment:
    def __init__(self, happened: bool = False) -> None:
        self.happened = happened

    def query(self) -> bool:
        return self.happened


def test_progress_tells_waiting_from_working() -> None:
    progress = Progress()
    assert not progress.in_collective
    pairs = [(Moment(), Moment()) for _ in range(3)]
    for before, after in pairs:
        progress.launched(before, after)
    assert not progress.in_collective, "a kernel before the first collective is still running"
    pairs[0][0].happened = True
    assert progress.in_collective
    pairs[0][1].happened = True
    assert not progress.in_collective, "between two collectives"
    pairs[1][0].happened = pairs[1][1].happened = pairs[2][0].happened = True
    assert progress.in_collective
    progress.clear()
    assert not progress.in_collective


def test_a_broken_device_is_not_waiting() -> None:
    class Broken(Moment):
        def query(self) -> bool:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")

    progress = Progress()
    progress.launched(Broken(), Broken())
    assert not progress.in_collective
