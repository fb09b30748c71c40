"""From what clients saw and the coordinator told to the figures of docs/benchmarks.md: pure functions."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ghostserve.bench.online.client import Played, Stream
from ghostserve.bench.online.faults import Case
from ghostserve.bench.online.history import busy_seconds, recovery_seconds, struck, useful_seconds

__all__ = ["Figure", "Slo", "Spread", "figure_of", "per_token_seconds", "spread"]


@dataclass(frozen=True)
class Slo:
    """What a request must meet to count as good (seconds): its first token, and each further one in the mean."""

    ttft: float
    per_token: float


@dataclass(frozen=True)
class Spread:
    mean: float
    p50: float
    p99: float
    most: float


@dataclass(frozen=True)
class Figure:
    """One strategy in one case. Seconds, unless said otherwise; None where there is nothing to take it of.

    `latency` from arrival to the last token, `ttft` from arrival to the first, `per_token` the mean of a request's
    further tokens. `pause`: of streams that were struck, from the kill to the next token. `recovery`: the mean over
    kills until all that they struck had gone beyond where it was. `good` requests met the SLO, `goodput` are those a
    second. `effective`: useful time of steps / time with a request in the engine. `struck`: requests that were in
    flight at a kill at least once.
    """

    strategy: str
    case: str
    requests: int
    kills: int
    void: int
    struck: int
    latency: Spread
    ttft: Spread
    per_token: Spread
    pause: Spread | None
    recovery: float | None
    good: int
    goodput: float
    effective: float
    makespan: float
    recomputed: int
    rebuilt_bytes: int
    latencies: tuple[float, ...]


def spread(values: Sequence[float]) -> Spread:
    """Percentiles by linear interpolation. Raises `ValueError` for none."""
    if not values:
        raise ValueError("no values to take percentiles of")
    p50, p99 = np.percentile(values, (50, 99))
    return Spread(float(np.mean(values)), float(p50), float(p99), float(max(values)))


def per_token_seconds(stream: Stream) -> float | None:
    """The mean time between its tokens; None if there is only one."""
    further = len(stream.times) - 1
    return (stream.times[-1] - stream.times[0]) / further if further else None


def figure_of(strategy: str, case: Case, played: Played, slo: Slo) -> Figure:
    """What `played` comes to. Every stream has at least one token."""
    streams, history = played.streams, played.history
    spans = [(stream.arrived, stream.times[-1]) for stream in streams]
    latencies = [end - begin for begin, end in spans]
    ttfts = [stream.times[0] - stream.arrived for stream in streams]
    paces = [pace for stream in streams if (pace := per_token_seconds(stream)) is not None]
    good = sum(is_good(stream, slo) for stream in streams)
    makespan = max(end for _, end in spans) - min(begin for begin, _ in spans)
    pauses = [one.seconds for kill in history.kills for one in struck(history, kill) if one.streaming]
    recoveries = [s for kill in history.kills if (s := recovery_seconds(history, kill)) is not None]
    records = [record for _, record in history.resumed]
    return Figure(
        strategy=strategy,
        case=case.label,
        requests=len(streams),
        kills=len(history.kills),
        void=played.void,
        struck=sum(any(begin <= kill.at < end for kill in history.kills) for begin, end in spans),
        latency=spread(latencies),
        ttft=spread(ttfts),
        per_token=spread(paces or [0.0]),
        pause=spread(pauses) if pauses else None,
        recovery=sum(recoveries) / len(recoveries) if recoveries else None,
        good=good,
        goodput=good / makespan,
        effective=useful_seconds(history.steps) / busy_seconds(spans),
        makespan=makespan,
        recomputed=sum(record.recomputed_requests for record in records),
        rebuilt_bytes=sum(record.bytes_rebuilt for record in records),
        latencies=tuple(latencies),
    )


def is_good(stream: Stream, slo: Slo) -> bool:
    """True if the request met the SLO."""
    pace = per_token_seconds(stream)
    return stream.times[0] - stream.arrived <= slo.ttft and (pace is None or pace <= slo.per_token)
