"""When an engine's steps were answered, when their flushes were committed, and when it served again."""

import threading
import time

from ghostserve.engine.messages import StepPlan
from ghostserve.engine.serving import LoggedStep
from ghostserve.errors import GhostServeError

__all__ = ["Watch"]


class Watch:
    """An engine's observer (`Options.observer`). It only notes down: the coordinator's thread must not wait."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._answered: dict[int, float] = {}
        self._tasks: dict[int, int] = {}
        """Flush task -> the step that handed it out."""
        self._committed: dict[int, float] = {}
        self._resumed: list[float] = []

    def __call__(self, name: str, details: dict[str, object]) -> None:
        now = time.monotonic()
        with self._changed:
            if name == "step" and not details["replay"]:
                plan = details["plan"]
                assert isinstance(plan, StepPlan)
                self._tasks |= {task.task_id: plan.step for task in plan.flush}
            elif name == "answered":
                entry = details["entry"]
                assert isinstance(entry, LoggedStep)
                self._answered[entry.plan.step] = now
            elif name == "committed":
                tasks = details["tasks"]
                assert isinstance(tasks, tuple)
                self._committed |= dict.fromkeys(tasks, now)
                self._changed.notify_all()
            elif name == "resumed":
                self._resumed.append(now)

    def clear(self) -> None:
        """Forget everything up to now; call it when nothing runs."""
        with self._changed:
            for notes in (self._answered, self._tasks, self._committed, self._resumed):
                notes.clear()

    def checkpoint_seconds(self, timeout: float = 60.0) -> float:
        """From each step's answer until all of its slots are committed, over all steps since `clear`.

        Waits for commits that are still to come. Raises `GhostServeError` where one does not come in time.
        """
        with self._changed:
            if not self._changed.wait_for(lambda: self._tasks.keys() <= self._committed.keys(), timeout):
                late = sorted(self._tasks.keys() - self._committed.keys())
                raise GhostServeError(f"flush tasks {late} were not committed within {timeout:.0f} s")
            last: dict[int, float] = {}
            for task, step in self._tasks.items():
                last[step] = max(last.get(step, 0.0), self._committed[task])
            # A rank may have flushed before rank 0 has drawn and answered.
            return sum(max(0.0, at - self._answered[step]) for step, at in last.items())

    def resumed_after(self, moment: float) -> float:
        """When steps ran again after `moment`. Raises `GhostServeError` if there was no recovery."""
        with self._changed:
            found = next((at for at in self._resumed if at >= moment), None)
        if found is None:
            raise GhostServeError("a rank was killed and no recovery followed")
        return found
