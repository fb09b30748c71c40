"""A worker on a GPU hears that its epoch is over: answers stop, then the aborts, and only then `Released`."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("vllm")

import torch

from ghostserve.errors import CudaError, PeerAccessError
from ghostserve.vllm import messages as msg
from ghostserve.vllm import process as module
from ghostserve.vllm.gate import ReleasedError
from ghostserve.workers.channel import ChannelClosedError


class Ended(BaseException):
    """In the place of the process's end."""


class Channel:
    def __init__(self, order: list[str], *messages: Any) -> None:
        self.order, self.messages, self.sent = order, list(messages), list[Any]()

    def receive(self) -> Any:
        if not self.messages:
            raise ChannelClosedError("closed")
        return self.messages.pop(0)

    def send(self, message: Any) -> None:
        self.order.append(type(message).__name__)
        self.sent.append(message)


class Rank:
    """Writes down who takes its answers away, and what is done to it."""

    def __init__(self, order: list[str]) -> None:
        object.__setattr__(self, "order", order)
        self.worker = SimpleNamespace(worker=SimpleNamespace(let_go=lambda: order.append("let go"), step=self._step))

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "worker_response_mq":
            self.order.append("no answers")
        object.__setattr__(self, name, value)

    def drain(self) -> None:
        self.order.append("drain")

    def _step(self) -> None:
        raise ReleasedError("epoch 1 was released at epoch 2")


class Links:
    waiting = False

    def __init__(self, order: list[str], failure: Exception | None = None, clean_cut: bool = False) -> None:
        self.order, self.failure, self.clean_cut = order, failure, clean_cut

    def cut(self, epoch: int) -> None:
        self.order.append(f"cut {epoch}")
        if self.failure is not None:
            raise self.failure

    def settle(self) -> None:
        self.order.append("settle")
        if isinstance(self.failure, torch.AcceleratorError):
            raise self.failure


@pytest.fixture
def order() -> list[str]:
    return []


@pytest.fixture
def make(order: list[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., module.Process]:
    def end(code: int) -> None:
        raise Ended(code)

    monkeypatch.setattr(module.os, "_exit", end)
    monkeypatch.setattr(module.groups, "leave", lambda: order.append("leave"))

    def process(*messages: Any, links: Links) -> module.Process:
        made = module.Process(None, Channel(order, *messages), [])  # type: ignore[arg-type]
        made._rank, made._links = Rank(order), links  # type: ignore[assignment]
        return made

    return process


def test_nothing_is_answered_any_more_before_anything_is_let_go(
    make: Callable[..., module.Process], order: list[str]
) -> None:
    process = make(msg.Release(2), links=Links(order))
    with pytest.raises(Ended):
        process._receive()
    assert order == ["no answers", "cut 2"]
    assert process._inbox.get() == msg.Release(2), "the main thread hears of it when nothing holds it any more"
    order.clear()
    process._leave(2)
    assert order == ["settle", "leave", "no answers", "drain", "let go", "Released"]


def test_a_worker_whose_aborts_hang_ends(make: Callable[..., module.Process], order: list[str]) -> None:
    process = make(msg.Release(2), links=Links(order, RuntimeError("not aborted within 10 s")))
    with pytest.raises(Ended) as ended:
        process._receive()
    assert ended.value.args == (1,)
    assert process._inbox.empty()


def test_a_refused_collective_waits_for_the_release(make: Callable[..., module.Process], order: list[str]) -> None:
    """Aborting by itself would let garbage through to flushes whose epoch is not fenced yet."""
    process = make(links=Links(order))
    process._method = lambda name: process._rank.worker.worker.step  # type: ignore[method-assign, union-attr]
    process._run(("run_step", (), {}, 0))
    assert order == ["no answers", "WorkerFailed"]


def test_where_no_garbage_gets_through_leaving_frees_the_others_at_once(
    make: Callable[..., module.Process], order: list[str]
) -> None:
    process = make(links=Links(order, clean_cut=True))
    process._method = lambda name: process._rank.worker.worker.step  # type: ignore[method-assign, union-attr]
    process._run(("run_step", (), {}, 0))
    assert order == ["no answers", "cut 1", "leave", "WorkerFailed"]


@pytest.mark.parametrize(
    ("error", "own"),
    [
        (torch.AcceleratorError("an illegal memory access was encountered"), True),
        (CudaError("a copy failed", code="cudaErrorIllegalAddress"), True),
        (PeerAccessError("that process must still run"), False),
        (ReleasedError("epoch 1 was released"), False),
        (RuntimeError("NCCL error: unhandled system error"), False),
    ],
)
def test_whose_fault_it_is(make: Callable[..., module.Process], order: list[str], error: Exception, own: bool) -> None:
    def fail() -> None:
        raise error

    process = make(links=Links(order))
    process._method = lambda name: fail  # type: ignore[method-assign]
    if own:
        with pytest.raises(type(error)):
            process._run(("rebuild", (), {}, None))
        assert order == []
    else:
        process._run(("rebuild", (), {}, None))
        assert order == ["no answers", "WorkerFailed"]
