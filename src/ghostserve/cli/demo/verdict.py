"""The comparison: what the clients received, what the engine delivered, and what an undisturbed run draws."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ghostserve.cli.demo.story import Story, Stream
from ghostserve.engine.engine import Engine
from ghostserve.engine.messages import Sampled
from ghostserve.engine.rerun import Difference, rerun
from ghostserve.engine.serving import LoggedStep

__all__ = ["KILLS", "Verdict", "judge"]

KILLS = 2


@dataclass(frozen=True)
class Verdict:
    """`garbled`: streams whose client received something else than the engine recorded; `first`: where it differs."""

    compared: int
    differences: int
    garbled: tuple[str, ...]
    first: str | None
    recovered: int

    @property
    def same(self) -> bool:
        """Every stream has reached its client, and is what the undisturbed run draws."""
        return self.compared > 0 and not self.differences and not self.garbled

    @property
    def passed(self) -> bool:
        return self.same and self.recovered == KILLS


def judge(engine: Engine, story: Story, on_progress: Callable[[int, int], None]) -> Verdict:
    """Run the recorded schedule again on fresh workers and compare. The engine has been stopped."""
    recording = engine.coordinator.recording
    result = rerun(
        engine.coordinator.config, engine.spec, recording, placement=engine.placement, on_progress=on_progress
    )
    delivered = _by_request(recording)
    garbled = tuple(s.plan.name for s in story.streams if not _received(s, delivered.get(_engine_id(s), [])))
    first = None
    if result.differences:
        first = _describe(result.differences[0], story.streams, delivered, engine)
    recovered = sum(recovery.record is not None for recovery in story.recoveries)
    return Verdict(result.compared, len(result.differences), garbled, first, recovered)


def _by_request(recording: Sequence[LoggedStep]) -> dict[str, list[Sampled]]:
    found: dict[str, list[Sampled]] = {}
    for entry in recording:
        for request_id, sampled in (entry.accepted or {}).items():
            found.setdefault(request_id, []).append(sampled)
    return found


def _engine_id(stream: Stream) -> str:
    """The server numbers the choices of a request; these have one."""
    return f"{stream.request_id}-0"


def _received(stream: Stream, delivered: Sequence[Sampled]) -> bool:
    ids = [sampled.token_id for sampled in delivered]
    logprobs = [None if _missing(sampled.logprob) else sampled.logprob for sampled in delivered]
    return bool(ids) and stream.token_ids == ids and stream.logprobs == logprobs


def _missing(logprob: float | None) -> bool:
    return logprob is None or math.isnan(logprob)  # JSON has no NaN: it arrives as null


def _describe(
    difference: Difference, streams: Sequence[Stream], delivered: dict[str, list[Sampled]], engine: Engine
) -> str:
    got, expected = difference.disturbed, difference.undisturbed
    name = next((s.plan.name for s in streams if _engine_id(s) == got.request_id), got.request_id)
    place = next(i for i, sampled in enumerate(delivered[got.request_id], 1) if sampled is got)
    wanted = "nothing" if expected is None else _token(expected, engine)
    return f"stream '{name}', token {place} (step {difference.step}): {_token(got, engine)} instead of {wanted}"


def _token(sampled: Sampled, engine: Engine) -> str:
    return f"{engine.tokenizer.decode([sampled.token_id])!r} (id {sampled.token_id}, logprob {sampled.logprob})"
