"""What the machine can take: one request alone, and many at once. The rate and the SLO come from these by default."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ghostserve.bench.online.client import play
from ghostserve.bench.online.faults import Case, Hit
from ghostserve.bench.online.figures import Slo, per_token_seconds
from ghostserve.bench.online.stage import Stage
from ghostserve.traces import Arrival

__all__ = ["Gauged", "gauge", "warm_up"]

_LOAD = 0.7
"""Of what the engine can take: requests wait at times, and the queue does not grow for ever."""
_TTFT_SLACK, _PACE_SLACK = 5.0, 3.0
"""How many times longer than alone a request may take and still be good."""
_QUIET = Case("quiet")


@dataclass(frozen=True)
class Gauged:
    """`capacity`: requests a second with many at once; `alone`: the mean request's times on an idle engine (s)."""

    capacity: float
    alone: Slo

    @property
    def rate(self) -> float:
        return _LOAD * self.capacity

    @property
    def slo(self) -> Slo:
        return Slo(_TTFT_SLACK * self.alone.ttft, _PACE_SLACK * self.alone.per_token)


def warm_up(stage: Stage, arrivals: Sequence[Arrival], *, limit: float, progress: Callable[[str], None]) -> None:
    """Two mean requests and a kill: a process's first steps and an engine's first recovery are slower than the rest."""
    mean = _mean(arrivals)
    hit = Hit(request=0, token=max(0, mean.output_tokens // 2), rank=stage.config.tensor_parallel_size - 1)
    play(stage, [mean] * 2, Case("warm-up", hits=(hit,)), name="warm-up", limit=limit, progress=progress)


def gauge(stage: Stage, arrivals: Sequence[Arrival], *, limit: float, progress: Callable[[str], None]) -> Gauged:
    """On a warm engine: the mean of `arrivals` alone, then as many of them at once as run together (at most 12)."""
    mean = _mean(arrivals)
    progress("one request alone")
    (alone,) = play(stage, [mean], _QUIET, name="alone", limit=limit, progress=progress).streams
    count = min(stage.config.max_num_seqs, len(arrivals), 12)
    progress(f"{count} requests at once")
    began = time.monotonic()
    burst = play(stage, [mean] * count, _QUIET, name="burst", limit=limit, progress=progress).streams
    seconds = max(stream.times[-1] for stream in burst) - began
    return Gauged(count / seconds, Slo(alone.times[0] - alone.arrived, per_token_seconds(alone) or 0.0))


def _mean(arrivals: Sequence[Arrival]) -> Arrival:
    prompt = sum(a.prompt_tokens for a in arrivals) // len(arrivals)
    output = sum(a.output_tokens for a in arrivals) // len(arrivals)
    return Arrival(0.0, prompt, max(2, output))
