"""Collectives of a released epoch raise on entry, and their communicators are aborted: once each, in bounded time."""

import threading
import time
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from ghostserve.errors import GhostServeError
from ghostserve.vllm.gate import Gate, GatedCommunicator, ReleasedError
from ghostserve.vllm.nccl import AbortError, NcclLinks, abort_all

CPU = torch.device("cpu")


class Moment:
    happened = True

    def query(self) -> bool:
        return self.happened


class Library:
    """Counts aborts; `order` is shared with whoever else writes down what happens."""

    def __init__(self, order: list[str], hang: threading.Event | None = None) -> None:
        self.order, self.hang = order, hang

    def ncclCommAbort(self, comm: str) -> None:  # noqa: N802
        self.order.append(f"abort {comm}")
        if self.hang is not None:
            self.hang.wait(20)


class Communicator:
    """vLLM's for one group."""

    world_size = 2

    def __init__(self, name: str, order: list[str], hang: threading.Event | None = None) -> None:
        self.order = order
        library = Library(order, hang)
        self.pynccl_comm = SimpleNamespace(nccl=library, comm=name, device=CPU, available=True, disabled=False)
        self.destroyed = 0

    def all_reduce(self, input_: torch.Tensor) -> torch.Tensor:
        self.order.append("all_reduce")
        return input_ * self.world_size

    def send(self, tensor: torch.Tensor, dst: int) -> None:
        self.order.append(f"send to {dst}")

    def destroy(self) -> None:
        self.destroyed += 1


def group(name: str, order: list[str], hang: threading.Event | None = None) -> Any:
    return SimpleNamespace(unique_name=name, device_communicator=Communicator(name, order, hang))


def links(order: list[str], seconds: float = 5.0, backends: tuple[str, ...] = ()) -> NcclLinks:
    others = [(name, lambda name=name: order.append(f"abort {name}")) for name in backends]
    return NcclLinks(mark=Moment, others=lambda device: others, abort_seconds=seconds)


class TestGate:
    def test_everything_but_the_end_passes_it(self) -> None:
        order: list[str] = []
        inner = Communicator("tp:0", order)
        gated = GatedCommunicator(inner, gate := Gate(Moment))
        assert gated.all_reduce(torch.ones(2)).tolist() == [2.0, 2.0]
        gated.send(torch.ones(1), dst=1)
        assert gated.world_size == 2
        assert gated.pynccl_comm is inner.pynccl_comm
        gate.shut("over")
        for refused in (lambda: gated.all_reduce(torch.ones(1)), lambda: gated.send(torch.ones(1), 0)):
            with pytest.raises(ReleasedError, match="over"):
                refused()
        gated.destroy()
        assert inner.destroyed == 1
        assert order == ["all_reduce", "send to 1"]

    def test_shutting_waits_for_a_launch_under_way(self) -> None:
        gate, inside, go, order = Gate(Moment, launch_seconds=20), threading.Event(), threading.Event(), []

        def launch() -> None:
            inside.set()
            go.wait(20)
            order.append("launched")

        main = threading.Thread(target=lambda: gate.launch(launch))
        main.start()
        assert inside.wait(20)
        threading.Timer(0.1, go.set).start()
        gate.shut("over")
        assert order == ["launched"]
        main.join()

    def test_a_launch_that_hangs_is_not_waited_for_long(self) -> None:
        gate, inside, go = Gate(Moment, launch_seconds=0.05), threading.Event(), threading.Event()
        main = threading.Thread(target=lambda: gate.launch(lambda: (inside.set(), go.wait(20))))
        main.start()
        assert inside.wait(20)
        began = time.monotonic()
        gate.shut("over")
        assert time.monotonic() - began < 5
        with pytest.raises(ReleasedError):
            gate.check()
        go.set()
        main.join()

    def test_a_failed_launch_leaves_it_open(self) -> None:
        gate = Gate(Moment)

        def fail() -> None:
            raise RuntimeError("NCCL error")

        with pytest.raises(RuntimeError):
            gate.launch(fail)
        assert gate.launch(lambda: 3) == 3

    def test_a_newcomer_warms_up_alone(self) -> None:
        order: list[str] = []
        made = links(order)
        tp = group("tp:0", order)
        made.open(2, [tp], CPU)
        ones = torch.ones(2, 3)
        with made.alone():
            assert torch.equal(tp.device_communicator.all_reduce(ones), ones)
            assert tp.device_communicator.all_reduce(ones) is not ones
            assert order == [], "nobody was asked"
            with pytest.raises(GhostServeError, match="send"):
                tp.device_communicator.send(ones)
        tp.device_communicator.all_reduce(ones)
        assert order == ["all_reduce"]

    def test_gathering_alone_has_the_shape_of_all(self) -> None:
        inner = Communicator("tp:0", [])
        inner.all_gather = lambda input_, dim=-1: None  # type: ignore[attr-defined]
        gate = Gate(Moment)
        gate.alone = True
        assert GatedCommunicator(inner, gate).all_gather(torch.ones(2, 3), dim=-1).shape == (2, 6)
        assert GatedCommunicator(inner, gate).all_gather(torch.ones(2, 3), 0).shape == (4, 3)


class TestLinks:
    def test_each_communicator_is_aborted_once_behind_the_shut_gate(self) -> None:
        order: list[str] = []
        made = links(order, backends=("torch's 0", "torch's 1"))
        groups = [group("tp:0", order), group("ep:0", order), SimpleNamespace(device_communicator=None)]
        made.open(1, groups, CPU)
        made.cut(2)
        assert sorted(order) == ["abort ep:0", "abort torch's 0", "abort torch's 1", "abort tp:0"]
        with pytest.raises(ReleasedError, match="epoch 1 was released at epoch 2"):
            groups[0].device_communicator.all_reduce(torch.ones(1))
        made.cut(2)
        made.cut(3)
        assert len(order) == 4
        for pynccl in (g.device_communicator.pynccl_comm for g in groups[:2]):
            assert (pynccl.available, pynccl.disabled) == (False, True), "vLLM's destroy would abort it again"

    def test_the_gate_is_shut_before_the_first_abort(self) -> None:
        order: list[str] = []
        tp = group("tp:0", order)
        seen: list[str] = []

        def look() -> None:
            try:
                tp.device_communicator.all_reduce(torch.ones(1))
            except ReleasedError:
                seen.append("refused")

        made = NcclLinks(mark=Moment, others=lambda device: [("a look", look)])
        made.open(1, [tp], CPU)
        made.cut(2)
        assert seen == ["refused"]

    def test_all_are_aborted_at_the_same_time(self) -> None:
        """A kernel of one stands behind a kernel of another in the stream: neither abort ends alone."""
        both = threading.Barrier(2)
        assert abort_all([("one", lambda: both.wait(20)), ("two", lambda: both.wait(20))], 20) == []

    def test_an_abort_that_hangs_is_named(self) -> None:
        go, order = threading.Event(), []
        made = links(order, seconds=0.2, backends=("torch's 0",))
        made.open(1, [group("tp:0", order, hang=go)], CPU)
        began = time.monotonic()
        with pytest.raises(AbortError, match=r"within 0.2 s: pynccl's of tp:0$"):
            made.cut(2)
        assert time.monotonic() - began < 5
        go.set()

    def test_one_that_fails_has_ended(self) -> None:
        def fail() -> None:
            raise RuntimeError("unhandled system error")

        done: list[str] = []
        assert abort_all([("bad", fail), ("fine", lambda: done.append("fine"))], 5) == []
        assert done == ["fine"]

    def test_a_disabled_communicator_is_left_alone(self) -> None:
        order: list[str] = []
        made, tp = links(order), group("tp:0", order)
        tp.device_communicator.pynccl_comm.disabled = True
        made.open(1, [tp], CPU)
        made.cut(2)
        assert order == []

    def test_a_release_during_the_join_cuts_the_new_ones_off(self) -> None:
        order: list[str] = []
        made = links(order)
        made.cut(3)
        with pytest.raises(ReleasedError, match="epoch 2 was released at epoch 3"):
            made.open(2, [group("tp:0", order)], CPU)
        assert order == ["abort tp:0"]

    def test_the_next_epoch_is_open_again(self) -> None:
        order: list[str] = []
        made, later = links(order), group("tp:0", order)
        made.open(1, [group("tp:0", order)], CPU)
        made.cut(2)
        made.open(2, [later], CPU)
        made.check()
        assert later.device_communicator.all_reduce(torch.ones(1)).tolist() == [2.0]
        made.cut(2)
        made.check()

    def test_a_collective_that_the_device_stands_in_is_waiting(self) -> None:
        class Pending(Moment):
            def __init__(self) -> None:
                marks.append(self)

        marks: list[Pending] = []
        made = NcclLinks(mark=Pending, others=lambda device: [])
        tp = group("tp:0", [])
        made.open(1, [tp], CPU)
        tp.device_communicator.all_reduce(torch.ones(1))
        marks[1].happened = False
        assert made.waiting
        marks[1].happened = True
        assert not made.waiting
