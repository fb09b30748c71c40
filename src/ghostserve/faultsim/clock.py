"""Virtual time: a heap of what is to happen. Nothing waits for real, and the same events give the same order."""

import heapq
from collections.abc import Callable

__all__ = ["Clock"]


class Clock:
    """Seconds since the simulation's start. Stands in for the `time` module where product code reads `monotonic`."""

    def __init__(self) -> None:
        self.now = 0.0
        self._count = 0
        self._heap: list[tuple[float, int, Callable[[], None]]] = []

    def monotonic(self) -> float:
        return self.now

    def after(self, delay: float, action: Callable[[], None]) -> None:
        """Call `action` in `delay` seconds (0 or more); actions of the same moment run in the order they came."""
        self.at(self.now + delay, action)

    def at(self, moment: float, action: Callable[[], None]) -> None:
        self._count += 1
        heapq.heappush(self._heap, (max(moment, self.now), self._count, action))

    def run(self, until: float, enough: Callable[[], bool]) -> None:
        """Let things happen until `enough()` or the moment `until`."""
        while not enough():
            if not self._heap or self._heap[0][0] > until:
                self.now = until
                return
            self.now, _, action = heapq.heappop(self._heap)
            action()
