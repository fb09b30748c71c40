"""Channels as sockets are: in order, with delays. A lost message stands for a peer that never acts on it."""

import random
from collections import Counter
from collections.abc import Callable, Sequence

import msgspec

from ghostserve.faultsim.clock import Clock
from ghostserve.faultsim.faults import Delay, Fault, Lose

__all__ = ["Network"]


class Network:
    """Carries every message between the coordinator and the workers; `faults` may lose or delay the nth of a kind."""

    def __init__(self, clock: Clock, rng: random.Random, faults: Sequence[Fault], note: Callable[[str], None]) -> None:
        self._clock, self._random, self._note = clock, rng, note
        self._lost = {(f.message, f.nth) for f in faults if isinstance(f, Lose)}
        self._late = {(f.message, f.nth): f.seconds for f in faults if isinstance(f, Delay)}
        self._sent: Counter[str] = Counter()
        self._free: dict[tuple[int, bool], float] = {}
        """(worker, towards it) -> when the last message on this channel arrives."""

    def carry(self, worker: int, inward: bool, message: msgspec.Struct, arrive: Callable[[], None]) -> None:
        """Call `arrive` when `message` has come to `worker` (`inward`) or from it."""
        kind = type(message).__name__
        self._sent[kind] += 1
        key = kind, self._sent[kind]
        if key in self._lost:
            self._note(f"lost: {kind} {'to' if inward else 'from'} worker {worker}")
            return
        seconds = self._late.get(key, 0.0)
        if seconds:
            self._note(f"late by {seconds:.2f} s: {kind} {'to' if inward else 'from'} worker {worker}")
        self.queue(worker, inward, seconds, arrive)

    def queue(self, worker: int, inward: bool, seconds: float, arrive: Callable[[], None]) -> None:
        """After all that is on this channel already, `seconds` later than usual."""
        moment = self._clock.now + seconds + self._random.uniform(0.0005, 0.003)
        moment = max(moment, self._free.get((worker, inward), 0.0))
        self._free[worker, inward] = moment
        self._clock.at(moment, arrive)
