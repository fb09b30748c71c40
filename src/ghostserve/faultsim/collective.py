"""The collectives of one epoch's group: a barrier that a death breaks for some at once and for others never."""

import random
from collections.abc import Callable
from functools import partial

from ghostserve.faultsim.clock import Clock

__all__ = ["Collective", "Resume"]

Resume = Callable[[bool], None]
"""Goes on with a waiting worker: True if all came, False if the communicator broke."""


class Collective:
    """`size` workers meet here, again and again. Whoever leaves breaks it for good."""

    def __init__(self, clock: Clock, rng: random.Random, size: int) -> None:
        self._clock, self._random, self._size = clock, rng, size
        self._waiting: dict[int, Resume] = {}
        self._broken = False

    def arrive(self, worker: int, resume: Resume) -> None:
        """`worker` waits for the others; `resume` is called once, later, unless it hangs here until `fail`."""
        self._waiting[worker] = resume
        if self._broken:
            self._notice(worker)
        elif len(self._waiting) == self._size:
            everyone, self._waiting = self._waiting, {}
            for go_on in everyone.values():
                self._clock.after(self._random.uniform(0.0, 0.002), partial(go_on, True))

    def waits(self, worker: int) -> bool:
        return worker in self._waiting

    def leave(self, worker: int) -> None:
        """Its connections are closed: it died, or gave the group up."""
        self._waiting.pop(worker, None)
        self._broken = True
        for peer in list(self._waiting):
            self._notice(peer)

    def fail(self, worker: int) -> None:
        """Cut this worker's wait off."""
        resume = self._waiting.pop(worker, None)
        if resume is not None:
            resume(False)

    def _notice(self, worker: int) -> None:
        # A neighbour's connection breaks at once; others wait on, as collectives of a GPU always do.
        if self._random.random() < 0.5:
            self._clock.after(0.02, lambda: self.fail(worker))
