"""What an engine's observer notes down becomes steps and kills, at the times at which it was told."""

import pytest

from ghostserve.bench.calibrate.fits import Kill, Step
from ghostserve.bench.calibrate.watch import Watch
from ghostserve.engine.messages import SequencePart, StepPlan
from ghostserve.errors import GhostServeError
from ghostserve.status import RecoveryRecord

RECORD = RecoveryRecord(
    epoch=2, reason="", lost_ranks=[1], seconds=0.2, bytes_rebuilt=4096, replayed_steps=1, recomputed_requests=0,
    refill_seconds=0.125,
)  # fmt: skip


def plan(**starts_and_tokens: tuple[int, int]) -> StepPlan:
    """A step in which each request named takes so many tokens from that start on."""
    return StepPlan(
        0,
        tuple(
            SequencePart(request_id=name, start=start, token_ids=(7,) * tokens, blocks=(0,), draw=None)
            for name, (start, tokens) in starts_and_tokens.items()
        ),
    )


class Told(Watch):
    """A watch whose clock stands where the test puts it."""

    def __init__(self) -> None:
        super().__init__(lambda: self.now)
        self.now = 0.0

    def at(self, now: float, name: str, **details: object) -> None:
        self.now = now
        self(name, details)


@pytest.fixture
def watch() -> Told:
    return Told()


def test_steps_that_go_on_are_timed(watch: Told) -> None:
    watch.at(1.0, "step", plan=plan(a=(0, 5)), replay=False)
    watch.at(1.5, "step", plan=plan(a=(5, 1), b=(0, 3)), replay=False)
    watch.at(1.75, "step", plan=plan(a=(6, 1), b=(3, 1)), replay=False)
    watch.at(9.0, "step", plan=plan(c=(0, 4)), replay=False)  # nothing ran in between
    assert watch.steps(3) == [Step(3, 0, 5, 0.5), Step(3, 1, 3, 0.25)]


def test_steps_around_a_loss_are_left_out(watch: Told) -> None:
    watch.at(1.0, "step", plan=plan(a=(5, 1)), replay=False)
    watch.at(1.5, "lost")
    watch.at(2.0, "step", plan=plan(a=(5, 1)), replay=True)
    watch.at(2.5, "step", plan=plan(a=(6, 1)), replay=False)
    watch.at(2.75, "step", plan=plan(a=(7, 1)), replay=False)
    assert watch.steps(0) == [Step(0, 1, 0, 0.25)]


def test_a_pause_ends_with_the_recovery_even_if_nothing_waits(watch: Told) -> None:
    watch.at(1.0, "step", plan=plan(a=(5, 1), b=(0, 10)), replay=False)
    watch.at(2.0, "lost")
    watch.at(2.25, "resumed", record=RECORD)
    watch.at(30.0, "step", plan=plan(c=(0, 10)), replay=False)
    assert watch.kill(1.75) == Kill(0.25, 0.5, 0.125, tokens=16, restored_bytes=4096)


def test_a_kill_needs_a_recovery_and_a_step_before(watch: Told) -> None:
    with pytest.raises(GhostServeError, match="no recovery followed"):
        watch.kill(0.0)
    watch.at(2.0, "lost")
    watch.at(2.25, "resumed", record=RECORD)
    with pytest.raises(GhostServeError, match="before anything ran"):
        watch.kill(1.0)
    with pytest.raises(GhostServeError, match="no recovery followed"):
        watch.kill(3.0)
