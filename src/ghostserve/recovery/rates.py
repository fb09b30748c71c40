"""What this machine can do, measured while it serves and recovers."""

from collections import deque
from collections.abc import Sequence
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from ghostserve.recovery.hybrid import Rates

__all__ = ["RateBook"]

_STEPS, _FEWEST, _PREFILL = 128, 3, 16
_NEW = 0.5
"""The weight of a new recovery against all before."""
_REBUILDS = 32
"""So many are remembered; each weighs `_NEW` of the next."""
_ALIKE = 1.5
"""Rebuilds whose sizes lie closer together say nothing of what a rebuild costs beside its slots."""


class RateBook:
    """Takes measurements, gives `Rates`; None as long as no rebuild or no prefill was seen."""

    def __init__(self) -> None:
        self._steps: deque[tuple[float, float, float]] = deque(maxlen=_STEPS)
        self._rebuilds: deque[tuple[int, float]] = deque(maxlen=_REBUILDS)
        self._alongside, self._accepted = 0.5, 1.0

    def saw_step(self, tokens: int, keys: float, seconds: float) -> None:
        """A step took `seconds` for `tokens` tokens that attended to `keys` keys in all."""
        # Of decodes there are so many that they would push every prefill out, and they are told by a few.
        if tokens >= _PREFILL or sum(t < _PREFILL for t, _, _ in self._steps) < _STEPS // 4:
            self._steps.append((tokens, keys, seconds))

    def saw_rebuild(self, slots: int, seconds: float) -> None:
        """A rebuild with nothing beside it took `seconds`."""
        if slots:
            self._rebuilds.append((slots, seconds))

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
        if not self._rebuilds or len(self._steps) < _FEWEST or max(t for t, _, _ in self._steps) < _PREFILL:
            return None
        tokens, keys, seconds = np.array(self._steps).T
        step, token, key = _fit([np.ones_like(tokens), tokens, keys], seconds, 1 / seconds)
        slot, start = self._rebuild()
        return Rates(slot, step, token, key, self._alongside, self._accepted, start)

    def _rebuild(self) -> tuple[float, float]:
        """(slot, start): later rebuilds count more; what they don't say, those of other sizes do."""
        slots, seconds = np.array(self._rebuilds, dtype=np.float64).T
        each = seconds / slots
        scale = np.sqrt(np.power(_NEW, np.arange(len(slots), dtype=np.float64)[::-1])) / (slots * each.mean())
        terms = [slots, np.ones_like(slots)]
        if slots.max() < _ALIKE * slots.min():
            (slot,) = _fit(terms[:1], seconds, scale)
            return slot, 0.0
        slot, start = _fit(terms, seconds, scale)
        return slot, start


def _fit(
    terms: Sequence[NDArray[np.float64]], seconds: NDArray[np.float64], scale: NDArray[np.float64]
) -> tuple[float, ...]:
    """What each term costs, never below 0, with the least squares of errors times `scale`: of all subsets the best.

    `terms`, `seconds`, `scale`: float64 (S,) each. Three terms have seven subsets: no iterative solver is needed.
    """
    scaled, wanted = np.stack(terms, axis=1) * scale[:, None], seconds * scale
    best, found = np.inf, np.zeros(len(terms))
    for size in range(1, len(terms) + 1):
        for chosen in combinations(range(len(terms)), size):
            part, *_ = np.linalg.lstsq(scaled[:, chosen], wanted, rcond=None)
            if (part < 0).any():
                continue
            error = float(((scaled[:, chosen] @ part - wanted) ** 2).sum())
            if error < best - 1e-12:
                best, found = error, np.zeros(len(terms))
                found[list(chosen)] = part
    return tuple(float(value) for value in found)
