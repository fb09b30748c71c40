"""What an engine's flushes took, and when it served again after a recovery."""

import threading
import time

from ghostserve.engine.messages import StepPlan
from ghostserve.errors import GhostServeError

__all__ = ["Watch"]


class Watch:
    """An engine's observer (`Options.observer`). It only notes down: the coordinator's thread must not wait."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._tasks: dict[int, int] = {}
        """Flush task -> the step that handed it out."""
        self._seconds: dict[int, float] = {}
        """Flush task -> what it took, once it is committed."""
        self._resumed: list[float] = []

    def __call__(self, name: str, details: dict[str, object]) -> None:
        now = time.monotonic()
        with self._changed:
            if name == "step" and not details["replay"]:
                plan = details["plan"]
                assert isinstance(plan, StepPlan)
                self._tasks |= {task.task_id: plan.step for task in plan.flush}
            elif name == "committed":
                tasks, seconds = details["tasks"], details["seconds"]
                assert isinstance(tasks, tuple)
                assert isinstance(seconds, float)
                self._seconds |= dict.fromkeys(tasks, seconds)
                self._changed.notify_all()
            elif name == "resumed":
                self._resumed.append(now)

    def clear(self) -> None:
        """Forget everything up to now; call it when nothing runs."""
        with self._changed:
            for notes in (self._tasks, self._seconds, self._resumed):
                notes.clear()

    def checkpoint_seconds(self, timeout: float = 60.0) -> float:
        """From reading a step's slots to their commit, by the slowest of the ranks that flush them; over all steps.

        Of the steps since `clear`; waits for commits that are still to come. Raises `GhostServeError` where one does
        not come in time.
        """
        with self._changed:
            if not self._changed.wait_for(lambda: self._tasks.keys() <= self._seconds.keys(), timeout):
                late = sorted(self._tasks.keys() - self._seconds.keys())
                raise GhostServeError(f"flush tasks {late} were not committed within {timeout:.0f} s")
            slowest: dict[int, float] = {}
            for task, step in self._tasks.items():
                slowest[step] = max(slowest.get(step, 0.0), self._seconds[task])
            return sum(slowest.values())

    def resumed_after(self, moment: float) -> float:
        """When steps ran again after `moment`. Raises `GhostServeError` if there was no recovery."""
        with self._changed:
            found = next((at for at in self._resumed if at >= moment), None)
        if found is None:
            raise GhostServeError("a rank was killed and no recovery followed")
        return found
