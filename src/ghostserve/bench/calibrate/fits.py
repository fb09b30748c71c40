"""From samples to constants: pure functions, to be checked against the constants that samples were made of."""

import statistics
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import numpy.typing as npt

from ghostserve.errors import GhostServeError

__all__ = ["Kill", "Step", "StepCosts", "fit_overhead", "fit_rejoin", "fit_restore", "fit_steps"]


@dataclass(frozen=True)
class Step:
    """A step took `seconds`, until the next was sent; `run` numbers the probe that it belongs to."""

    run: int
    decodes: int
    prefill_tokens: int
    seconds: float


@dataclass(frozen=True)
class Kill:
    """One killed rank: seconds from the kill until it was noticed, until steps could go on, and of the refill alone.

    `tokens`: of all contexts when it struck; `restored_bytes`: what came back of the lost rank's shard.
    """

    detect_s: float
    pause_s: float
    refill_s: float
    tokens: int
    restored_bytes: int


@dataclass(frozen=True)
class StepCosts:
    """Seconds of a step: step + prefill (if it has one) + seq x decodes + token x prefill tokens."""

    step: float
    prefill: float
    seq: float
    token: float

    def mean(self, steps: Sequence[Step]) -> float:
        """Seconds that these costs give to steps like `steps`, on average."""
        return float((_terms(steps) @ np.array([self.step, self.prefill, self.seq, self.token])).mean())


def fit_steps(steps: Sequence[Step]) -> StepCosts:
    """Least squares over the steps of each run; of the runs' costs those that are the median for all these steps.

    Squares of seconds, not of their logarithms: streams feel the sum of their steps, slow ones too. The median over
    the runs: another program's burst spoils one. Raises `GhostServeError` where a run can't tell the costs apart.
    """
    if not steps:
        raise GhostServeError("no steps were measured")
    found = sorted((_fit(run) for run in _by_run(steps).values()), key=lambda costs: costs.mean(steps))
    return found[len(found) // 2]


def _by_run(steps: Sequence[Step]) -> dict[int, list[Step]]:
    runs: dict[int, list[Step]] = defaultdict(list)
    for step in steps:
        runs[step.run].append(step)
    return runs


def _terms(steps: Sequence[Step]) -> npt.NDArray[np.float64]:
    return np.array([(1, s.prefill_tokens > 0, s.decodes, s.prefill_tokens) for s in steps], np.float64)


def _fit(steps: Sequence[Step]) -> StepCosts:
    """Non-negative least squares: of all subsets of terms that have prefill tokens, the best."""
    terms, seconds = _terms(steps), np.array([s.seconds for s in steps])
    if np.linalg.matrix_rank(terms) < terms.shape[1]:
        raise GhostServeError(f"{len(steps)} steps are too much alike to tell what decodes, prefills and tokens cost")
    best, found = np.inf, np.zeros(terms.shape[1])
    for size in range(terms.shape[1]):
        for others in combinations(range(3), size):
            chosen = [*others, 3]
            part, *_ = np.linalg.lstsq(terms[:, chosen], seconds, rcond=None)
            error = float(((terms[:, chosen] @ part - seconds) ** 2).sum())
            if (part >= 0).all() and part[-1] > 0 and error < best:
                best, found = error, np.zeros(terms.shape[1])
                found[chosen] = part
    if not np.isfinite(best):
        raise GhostServeError(f"prefill tokens cost nothing by the {len(steps)} steps of a run")
    return StepCosts(*(float(value) for value in found))


def fit_overhead(protected: Sequence[Step], unprotected: Sequence[Step]) -> float:
    """The part by which the same steps take longer on the engine with protection, at least 0: the median over the runs.

    Run for run, as the engines took turns: the medians of each may be of moments at which the machine was not the same.
    Raises `GhostServeError` where no run has steps of both.
    """
    own, other = _by_run(protected), _by_run(unprotected)
    every = [*protected, *unprotected]
    slower = [_fit(own[run]).mean(every) / _fit(other[run]).mean(every) for run in own.keys() & other.keys()]
    if not slower:
        raise GhostServeError("no run has steps of both engines")
    return max(0.0, statistics.median(slower) - 1)


def fit_restore(kills: Sequence[Kill]) -> float:
    """Bytes a second at which a lost shard comes back: the median. Raises `GhostServeError` if nothing came back."""
    rates = [kill.restored_bytes / kill.refill_s for kill in kills if kill.refill_s > 0]
    if not rates or min(rates) <= 0:
        raise GhostServeError(f"nothing was restored in {len(kills)} recoveries")
    return statistics.median(rates)


def fit_rejoin(kills: Sequence[Kill], shard_bytes_per_token: float, bytes_per_s: float) -> tuple[float, float]:
    """(detect, rejoin) in seconds, medians; rejoin is what the pause has beside the notice and the restore."""
    restore = shard_bytes_per_token / bytes_per_s
    detect = statistics.median(kill.detect_s for kill in kills)
    return detect, max(0.0, statistics.median(k.pause_s - k.detect_s - k.tokens * restore for k in kills))
