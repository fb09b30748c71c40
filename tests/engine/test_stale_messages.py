"""What was said in another epoch is dropped, in both directions, whatever it is; and without the check it is not."""

from collections.abc import Iterator
from typing import get_args

import msgspec
import pytest

from ghostserve.engine import messages as msg
from ghostserve.engine.config import EngineConfig
from ghostserve.engine.coordinator import Coordinator
from ghostserve.engine.modelspec import inspect_checkpoint
from ghostserve.engine.worker import Worker

PRESENT = 5
STEP = 9
PART = msg.SequencePart("a", (1,), 0, (0,), None)

TO_WORKER = {
    msg.Join: lambda epoch: msg.Join(epoch, 1, "secret"),
    msg.Attach: lambda epoch: msg.Attach(epoch, (b"handle",)),
    msg.Release: lambda epoch: msg.Release(epoch),
    msg.RunStep: lambda epoch: msg.RunStep(epoch, msg.StepPlan(STEP, ())),
    msg.Rebuild: lambda epoch: msg.Rebuild(epoch, (1,), ()),
    msg.Recompute: lambda epoch: msg.Recompute(epoch, 0, (1,), PART, ()),
    msg.Scrub: lambda epoch: msg.Scrub(epoch, 0, ()),
}
BEGINNINGS = (msg.Join, msg.Release)
"""They carry the epoch that begins: a newer one is what a worker waits for."""

FROM_WORKER = {
    msg.StepDone: lambda epoch: msg.StepDone(epoch, STEP, ()),
    msg.TasksDone: lambda epoch: msg.TasksDone(epoch, (3,)),
    msg.FlushAbandoned: lambda epoch: msg.FlushAbandoned(epoch, 3, "disk full"),
    msg.Joined: lambda epoch: msg.Joined(epoch),
    msg.Attached: lambda epoch: msg.Attached(epoch),
    msg.Released: lambda epoch: msg.Released(epoch),
    msg.RebuildDone: lambda epoch: msg.RebuildDone(epoch, 0, 0, 0, 0, 0, (), (), ()),
    msg.Recomputed: lambda epoch: msg.Recomputed(epoch, 0, True),
    msg.Scrubbed: lambda epoch: msg.Scrubbed(epoch, 0, 0, 0, (), 0, ()),
    msg.WorkerFailed: lambda epoch: msg.WorkerFailed(epoch, True, "a peer is gone"),
}


def with_epoch(union: object) -> set[type]:
    return {kind for kind in get_args(union) if "epoch" in {field.name for field in msgspec.structs.fields(kind)}}


def test_no_message_is_forgotten_here() -> None:
    assert set(TO_WORKER) == with_epoch(msg.ToWorker)
    assert set(FROM_WORKER) == with_epoch(msg.FromWorker)


# ---- to a worker


class Listener(Worker):
    """A worker without a model, that notes what it acts upon."""

    def __init__(self) -> None:
        self._epoch = PRESENT
        self.acted: list[str] = []

    def _join(self, *_: object) -> None:
        self.acted.append("Join")

    def _attach(self, *_: object) -> None:
        self.acted.append("Attach")

    def _release(self, *_: object) -> None:
        self.acted.append("Release")

    def _run_step(self, *_: object) -> None:
        self.acted.append("RunStep")

    def _begin_rebuild(self, *_: object) -> None:
        self.acted.append("Rebuild")

    def _recompute(self, *_: object) -> None:
        self.acted.append("Recompute")

    def _begin_scrub(self, *_: object) -> None:
        self.acted.append("Scrub")


class Credulous(Listener):
    """The twin: nobody looks at the epoch."""

    def _is_stale(self, message: msg.ToWorker) -> bool:
        return False


@pytest.mark.parametrize("kind", TO_WORKER)
def test_a_worker_acts_on_its_own_epoch_only(kind: type) -> None:
    older, present, newer = ([], [kind.__name__], [kind.__name__] if kind in BEGINNINGS else [])
    for epoch, expected in ((0, older), (PRESENT - 1, older), (PRESENT, present), (PRESENT + 1, newer)):
        worker = Listener()
        worker._handle(TO_WORKER[kind](epoch))
        assert worker.acted == expected, f"{kind.__name__} of epoch {epoch} in epoch {PRESENT}"


@pytest.mark.parametrize("kind", TO_WORKER)
def test_a_worker_without_the_check_acts_on_an_older_epoch(kind: type) -> None:
    worker = Credulous()
    worker._handle(TO_WORKER[kind](PRESENT - 1))
    assert worker.acted == [kind.__name__]


# ---- to the coordinator


class Refilling:
    """A refill under way that notes what it is told."""

    def __init__(self, acted: list[object]) -> None:
        self.acted = acted

    def ran(self, worker: int, message: msg.Recomputed) -> None:
        self.acted.append(message)

    def rebuilt(self, worker: int) -> None:
        self.acted.append(worker)


class Hearing(Coordinator):
    """A coordinator that is never started, in the middle of step 9 of epoch 5, and notes what it acts upon."""

    def __init__(self, config: EngineConfig) -> None:
        super().__init__(config, inspect_checkpoint(config))
        self.acted: list[object] = []
        self._driver.machine.epoch = PRESENT
        self._running_step = STEP
        self._driver.tell = self.acted.append
        self._driver._refill = Refilling(self.acted)
        self._driver._refilled = lambda: None
        self.serving.tasks_done = self.acted.append
        self._scrub.heard = self.acted.append

    def _step_done(self, step: int, sampled: tuple[msg.Sampled, ...]) -> None:
        self.acted.append(step)


class Gullible(Hearing):
    """The twin: nobody looks at the epoch."""

    def _is_stale(self, message: object) -> bool:
        return False


@pytest.fixture(scope="module")
def config(llama_4: str) -> EngineConfig:
    return EngineConfig(model=llama_4, tensor_parallel_size=2, kv_cache_memory=1 << 20, device="cpu")


@pytest.fixture
def hearing(config: EngineConfig) -> Iterator[Hearing]:
    coordinator = Hearing(config)
    yield coordinator
    coordinator._finish()


@pytest.fixture
def gullible(config: EngineConfig) -> Iterator[Gullible]:
    coordinator = Gullible(config)
    yield coordinator
    coordinator._finish()


@pytest.mark.parametrize("kind", FROM_WORKER)
def test_the_coordinator_hears_its_own_epoch_only(hearing: Hearing, kind: type) -> None:
    for epoch in (0, PRESENT - 1, PRESENT + 1):
        hearing._hear(0, FROM_WORKER[kind](epoch))
        assert hearing.acted == [], f"{kind.__name__} of epoch {epoch} in epoch {PRESENT}"
    hearing._hear(0, FROM_WORKER[kind](PRESENT))
    assert len(hearing.acted) == 1


@pytest.mark.parametrize("kind", FROM_WORKER)
def test_the_coordinator_without_the_check_hears_an_older_epoch(gullible: Gullible, kind: type) -> None:
    gullible._hear(0, FROM_WORKER[kind](PRESENT - 1))
    assert len(gullible.acted) == 1


def test_a_worker_that_is_broken_is_believed_in_any_epoch(hearing: Hearing) -> None:
    """It may not know what epoch it is; and its end has to come."""
    for epoch in (0, PRESENT - 1, PRESENT):
        hearing._hear(0, msg.WorkerFailed(epoch, False, "out of memory"))
    assert len(hearing.acted) == 3


def test_an_answer_to_another_step_is_no_answer(hearing: Hearing) -> None:
    hearing._hear(0, msg.StepDone(PRESENT, STEP - 1, ()))
    assert hearing.acted == []
