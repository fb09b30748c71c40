"""Whom to strike, how and when: drawn from a seed, one strike after the other."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

__all__ = ["MOMENTS", "Draws", "Moment", "Signal", "Strike"]

Moment = Literal["prefill", "decode", "idle", "recovery", "together", "standby"]
Signal = Literal["kill", "stop"]

MOMENTS: dict[tuple[Moment, Signal], int] = {
    ("decode", "kill"): 28,
    ("prefill", "kill"): 20,
    ("idle", "kill"): 8,
    ("recovery", "kill"): 16,
    ("together", "kill"): 12,
    ("standby", "kill"): 8,
    ("decode", "stop"): 4,
    ("prefill", "stop"): 2,
    ("idle", "stop"): 1,
    # These take a whole phase deadline each: nobody notices before.
    ("recovery", "stop"): 1,
    ("standby", "stop"): 1,
}
"""How often each is drawn, relative to the others."""

_NEWCOMER = 0.4
"""How often the second one struck during a recovery is the first one's successor."""
_COLD = 0.15
"""How often a strike does not wait until a standby is ready."""


@dataclass(frozen=True)
class Strike:
    """`ranks` are struck in this order; `recovery`: all but the first while the group recovers from that.

    `standby`: the number tells which one. `delay`, `pause`: seconds from the moment to the strike, and from the
    beginning of the recovery to the second one. `progress`: how far the streams are, 0 to 1, before a decode counts
    as one. `seed`: of what the clients ask. `cold`: the strike does not wait for a standby.
    """

    number: int
    moment: Moment
    signal: Signal
    ranks: tuple[int, ...]
    delay: float
    pause: float
    progress: float
    cold: bool
    seed: int


class Draws:
    """An endless row of strikes; the same seed gives the same row."""

    def __init__(self, seed: int, *, ranks: int, covered: int) -> None:
        """`covered`: at most so many of the `ranks` may be lost at once."""
        self._random = random.Random(seed)
        self._ranks = ranks
        self._covered = covered
        self._number = 0

    def next(self, most: int) -> Strike:
        """A strike on `most` processes at most."""
        rng = self._random
        while True:
            moment, signal = rng.choices(list(MOMENTS), list(MOMENTS.values()))[0]
            ranks = self._victims(moment)
            if ranks and len(ranks) <= most:
                break
        self._number += 1
        return Strike(
            number=self._number,
            moment=moment,
            signal=signal,
            ranks=tuple(ranks),
            delay=rng.uniform(0.0, 0.08 if moment == "prefill" else 0.03),
            pause=rng.uniform(0.0, 0.2),
            progress=rng.uniform(0.0, 0.7),
            cold=rng.random() < _COLD,
            seed=rng.getrandbits(48),
        )

    def _victims(self, moment: Moment) -> Sequence[int]:
        """Empty where this many ranks, or this code, leave no room for it."""
        rng, everyone = self._random, range(self._ranks)
        if moment == "together":
            return rng.sample(everyone, rng.randint(2, self._covered)) if self._covered >= 2 else ()
        if moment == "recovery":
            first = rng.choice(everyone)
            if self._covered < 2 or rng.random() < _NEWCOMER:
                return (first, first)
            return (first, rng.choice([rank for rank in everyone if rank != first]))
        return (rng.choice(everyone),)
