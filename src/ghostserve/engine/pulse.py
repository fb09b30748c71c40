"""Finds workers that hang where nobody waits for them: else a client's pause would be where that is noticed."""

from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Look", "PulseWatch"]


@dataclass(frozen=True)
class Look:
    """Whom to ask whether it is there, and who has not answered in time."""

    ask: tuple[int, ...]
    silent: tuple[int, ...]


class PulseWatch:
    """Has every worker asked each `every` seconds; one that answers nothing for `patience` seconds is silent.

    No I/O and no clock of its own: the caller asks, says who answered, and gives up who is silent. A question or an
    answer that gets lost does no harm. Time in which the caller itself did not look is nobody's silence.
    """

    def __init__(self, *, every: float, patience: float) -> None:
        self._every, self._patience = every, patience
        self._asked: dict[int, float] = {}
        self._silent_since: dict[int, float] = {}
        self._looked: float | None = None

    def look(self, workers: Sequence[int], now: float) -> Look:
        """`workers`: all that should answer now."""
        self._forget_all_but(workers)
        unseen = 0.0 if self._looked is None else now - self._looked
        self._looked = now
        if unseen > self._every:
            for worker in self._silent_since:
                self._silent_since[worker] += unseen
        ask = tuple(w for w in workers if w not in self._asked or now - self._asked[w] >= self._every)
        for worker in ask:
            self._asked[worker] = now
            self._silent_since.setdefault(worker, now)
        silent = (w for w in workers if w in self._silent_since and now - self._silent_since[w] > self._patience)
        return Look(ask, tuple(silent))

    def heard(self, worker: int) -> None:
        """It has answered."""
        self._silent_since.pop(worker, None)

    def _forget_all_but(self, workers: Sequence[int]) -> None:
        for known in (self._asked, self._silent_since):
            for worker in [worker for worker in known if worker not in workers]:
                del known[worker]
