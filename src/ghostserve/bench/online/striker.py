"""Kills at moments of the schedule: the same ones, however fast an engine gets there."""

from collections.abc import Callable, Mapping

from ghostserve.bench.online.faults import Hit
from ghostserve.engine.messages import StepPlan

__all__ = ["Striker"]


class Striker:
    """Strikes once for each of `hits` (by request id); told of every step as it is sent, on the coordinator's thread.

    `kill(rank)` is False where no process has the rank just now: then the hit waits for a later step. One hit at a
    time: the next waits until the group has resumed, or two could come to more than parity covers.
    """

    def __init__(self, hits: Mapping[str, Hit], kill: Callable[[int], bool]) -> None:
        self._hits = dict(hits)
        self._kill = kill
        self._waits = False

    @property
    def pending(self) -> int:
        """Hits that have not struck yet."""
        return len(self._hits)

    def step_sent(self, plan: StepPlan) -> None:
        """`plan` is run for the first time; not to be told of replays."""
        if self._waits:
            return
        for part in plan.parts:
            hit = self._hits.get(part.request_id)
            if hit is not None and part.draw is not None and part.draw.counter >= hit.token and self._kill(hit.rank):
                del self._hits[part.request_id]
                self._waits = True
                return

    def resumed(self) -> None:
        """The group serves again."""
        self._waits = False
