"""What one engine's coordinator tells while it serves: when each step was sent, what was lost, when it could go on."""

import threading
import time
from collections.abc import Callable, Iterator
from itertools import pairwise

from ghostserve.bench.calibrate.fits import Kill, Step
from ghostserve.engine.messages import StepPlan
from ghostserve.errors import GhostServeError
from ghostserve.status import RecoveryRecord

__all__ = ["Watch"]


class Watch:
    """An engine's observer (`Options.observer`). It only notes down: the coordinator's thread must not wait."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._sent: list[tuple[float, StepPlan]] = []
        self._lost: list[float] = []
        self._resumed: list[tuple[float, RecoveryRecord]] = []

    def __call__(self, name: str, details: dict[str, object]) -> None:
        now = self._clock()
        with self._lock:
            if name == "step" and not details["replay"]:
                plan = details["plan"]
                assert isinstance(plan, StepPlan)
                self._sent.append((now, plan))
            elif name == "lost":
                self._lost.append(now)
            elif name == "resumed":
                record = details["record"]
                assert isinstance(record, RecoveryRecord)
                self._resumed.append((now, record))

    def clear(self) -> None:
        """Forget everything up to now."""
        with self._lock:
            for notes in (self._sent, self._lost, self._resumed):
                notes.clear()

    def steps(self, run: int) -> list[Step]:
        """Steps that were followed at once by the next: a request of theirs goes on in it. None around a recovery."""
        with self._lock:
            return list(self._steps(run))

    def _steps(self, run: int) -> Iterator[Step]:
        for (began, plan), (ended, after) in pairwise(self._sent):
            goes_on = {part.request_id for part in plan.parts} & {part.request_id for part in after.parts}
            if not goes_on or any(began <= moment <= ended for moment in self._lost):
                continue
            lengths = [len(part.token_ids) for part in plan.parts]
            yield Step(run, lengths.count(1), sum(n for n in lengths if n > 1), ended - began)

    def kill(self, at: float) -> Kill:
        """What the kill at `at`, by the same clock, led to. Raises `GhostServeError` if no recovery followed."""
        with self._lock:
            noticed = next((moment for moment in self._lost if moment >= at), None)
            resumed = next(((moment, record) for moment, record in self._resumed if moment >= at), None)
            if noticed is None or resumed is None:
                raise GhostServeError("a rank was killed and no recovery followed")
            # The step that was under way when the rank died holds every context that was running.
            plan = next((plan for moment, plan in reversed(self._sent) if moment < resumed[0]), None)
            if plan is None:
                raise GhostServeError("a rank was killed before anything ran")
        tokens = sum(part.start + len(part.token_ids) for part in plan.parts)
        record = resumed[1]
        # Not until the next step: where nothing waits that is the next request's coming.
        return Kill(noticed - at, resumed[0] - at, record.refill_seconds, tokens, record.bytes_rebuilt)
