"""What this machine can do, measured while it serves and recovers."""

from collections import deque
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from ghostserve.recovery.hybrid import Rates

__all__ = ["RateBook"]

_STEPS, _FEWEST, _PREFILL = 128, 3, 16
_NEW = 0.5
"""The weight of a new recovery against all before."""


class RateBook:
    """Takes measurements, gives `Rates`; None as long as no rebuild or no prefill was seen."""

    def __init__(self) -> None:
        self._steps: deque[tuple[float, float, float]] = deque(maxlen=_STEPS)
        self._slot: float | None = None
        self._alongside, self._accepted = 0.5, 1.0

    def saw_step(self, tokens: int, keys: float, seconds: float) -> None:
        """A step took `seconds` for `tokens` tokens that attended to `keys` keys in all."""
        # Of decodes there are so many that they would push every prefill out, and they are told by a few.
        if tokens >= _PREFILL or sum(t < _PREFILL for t, _, _ in self._steps) < _STEPS // 4:
            self._steps.append((tokens, keys, seconds))

    def saw_rebuild(self, slots: int, seconds: float) -> None:
        """A rebuild with nothing beside it took `seconds`."""
        if slots:
            measured = seconds / slots
            self._slot = measured if self._slot is None else _NEW * measured + (1 - _NEW) * self._slot

    def saw_both(self, rebuild: float, recompute: float, seconds: float) -> None:
        """A rebuild and a recompute, expected to take that long alone, took `seconds` together."""
        short, long = sorted((rebuild, recompute))
        if short > 0.1 * long:  # else it says nothing about the two together
            beside = min(1.0, max(0.1, short / max(seconds - (long - short), short)))
            self._alongside = _NEW * beside + (1 - _NEW) * self._alongside

    def saw_recomputed(self, slots: int, accepted: int) -> None:
        """Of so many recomputed slots, `accepted` came out with the recorded bits."""
        if slots:
            self._accepted = _NEW * accepted / slots + (1 - _NEW) * self._accepted

    def rates(self) -> Rates | None:
        if self._slot is None or len(self._steps) < _FEWEST or max(t for t, _, _ in self._steps) < _PREFILL:
            return None
        step, token, key = _fit(np.array(self._steps))
        return Rates(self._slot, step, token, key, self._alongside, self._accepted)


def _fit(steps: NDArray[np.float64]) -> tuple[float, float, float]:
    """Non-negative (step, token, key) of the least squared relative error: of all subsets of terms the best that fits.

    Three terms have seven subsets, so there is no need for an iterative solver.
    """
    tokens, keys, seconds = steps.T
    terms = np.stack([np.ones_like(tokens), tokens, keys], axis=1) / seconds[:, None]
    best, found = np.inf, np.zeros(3)
    for size in (1, 2, 3):
        for chosen in combinations(range(3), size):
            part, *_ = np.linalg.lstsq(terms[:, chosen], np.ones(len(seconds)), rcond=None)
            if (part < 0).any():
                continue
            error = float(((terms[:, chosen] @ part - 1) ** 2).sum())
            if error < best - 1e-12:
                best, found = error, np.zeros(3)
                found[list(chosen)] = part
    step, token, key = (float(value) for value in found)
    return step, token, key
