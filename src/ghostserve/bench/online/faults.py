"""Which ranks are killed when: drawn from a seed, the same for every strategy."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ghostserve.errors import ConfigError

__all__ = ["Case", "Hit", "Timed", "draw_hits", "draw_timed", "make_cases"]


@dataclass(frozen=True)
class Hit:
    """`rank` is killed while the step runs that draws token number `token` (from 0) of request `request`."""

    request: int
    token: int
    rank: int


@dataclass(frozen=True)
class Timed:
    """`rank` is killed `at_seconds` after the first arrival."""

    at_seconds: float
    rank: int


@dataclass(frozen=True)
class Case:
    """One column of the comparison. `percent` of the requests are hit, or failures come as `mtbf` (seconds) says."""

    label: str
    percent: float | None = None
    mtbf: float | None = None
    hits: tuple[Hit, ...] = ()
    timed: tuple[Timed, ...] = ()


def draw_hits(outputs: Sequence[int], percent: float, *, ranks: int, seed: int) -> tuple[Hit, ...]:
    """A failure for `percent` of the requests (rounded, at least one if above 0), in the order of the requests.

    `outputs` tokens of each request. Who is hit at a lower percentage is hit, in the same way, at a higher one too.
    Raises `ConfigError` outside 0..100.
    """
    if not 0 <= percent <= 100:
        raise ConfigError(f"failures must be percentages from 0 to 100, not {percent:g}")
    rng = np.random.default_rng((seed, 11))
    order = rng.permutation(len(outputs))
    # Not the last token: if a recovery is under way just then, there is a later step to strike in.
    drawn = [Hit(int(r), int(rng.integers(max(1, outputs[r] - 1))), int(rng.integers(ranks))) for r in order]
    count = max(1, math.floor(len(outputs) * percent / 100 + 0.5)) if percent else 0
    return tuple(sorted(drawn[:count], key=lambda hit: hit.request))


def draw_timed(mtbf: float, span: float, *, ranks: int, seed: int) -> tuple[Timed, ...]:
    """Failures with exponential gaps of mean `mtbf` seconds, of any rank, up to `span` seconds.

    Raises `ConfigError` if `mtbf` is not above 0.
    """
    if not 0 < mtbf < float("inf"):
        raise ConfigError(f"mtbf must be seconds above 0, not {mtbf}")
    rng = np.random.default_rng((seed, 12))
    found, at = [], float(rng.exponential(mtbf))
    while at < span:
        found.append(Timed(at, int(rng.integers(ranks))))
        at += float(rng.exponential(mtbf))
    return tuple(found)


def make_cases(
    outputs: Sequence[int], *, percents: Sequence[float], mtbf: float | None, span: float, ranks: int, seed: int
) -> list[Case]:
    """A case for each of `percents`, and one for `mtbf`. Raises `ConfigError`."""
    cases = [
        Case(f"{percent:g} %", percent=percent, hits=draw_hits(outputs, percent, ranks=ranks, seed=seed))
        for percent in percents
    ]
    if mtbf is not None:
        timed = draw_timed(mtbf, span, ranks=ranks, seed=seed)
        cases.append(Case(f"MTBF {mtbf:g} s", mtbf=mtbf, timed=timed))
    return cases
