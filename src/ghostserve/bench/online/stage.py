"""One strategy's engine, watched from its coordinator's thread, and struck there: at a moment of the schedule."""

import os
import signal
import threading
import time
from collections.abc import Callable, Mapping
from types import TracebackType

from ghostserve.bench.online.faults import Hit
from ghostserve.bench.online.history import History, Kill, Share, Step
from ghostserve.bench.online.striker import Striker
from ghostserve.engine.config import EngineConfig
from ghostserve.engine.coordinator import Options
from ghostserve.engine.engine import Engine
from ghostserve.engine.messages import StepPlan
from ghostserve.engine.serving import LoggedStep
from ghostserve.errors import GhostServeError
from ghostserve.status import RecoveryRecord

__all__ = ["Stage"]

_CALM_SECONDS = 300.0


class Stage:
    """A context manager around an engine that keeps every step plan for the undisturbed rerun.

    Raises what `Engine` raises for settings that can't be served, before anything is started.
    """

    def __init__(self, config: EngineConfig, *, skip_rebuild: bool = False) -> None:
        """`skip_rebuild`: sabotage, for the proof that a wrong token is found."""
        self.history = History()
        self._lock = threading.Lock()
        self._striker = Striker({}, self.kill)
        self._sent = 0.0
        self.on_kill: Callable[[], None] = lambda: None
        options = Options(record=True, observer=self._observe, skip_rebuild=skip_rebuild)
        self.config = config
        self.engine = Engine(config, options=options)

    def __enter__(self) -> "Stage":
        self.engine.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.engine.stop()

    def await_calm(self) -> None:
        """Wait until all ranks serve and the standbys are ready. Raises `GhostServeError` if they never are."""
        deadline = time.monotonic() + _CALM_SECONDS
        while not self._calm():
            if self.engine.coordinator.failure is not None:
                raise self.engine.coordinator.failure
            if time.monotonic() > deadline:
                raise GhostServeError(f"no {self.config.standbys} standbys were ready in {_CALM_SECONDS:.0f} s")
            time.sleep(0.02)

    def begin(self, hits: Mapping[str, Hit]) -> None:
        """A new history; `hits` by request id are to strike in it."""
        with self._lock:
            self.history = History()
            self._striker = Striker(hits, self.kill)

    @property
    def pending_hits(self) -> int:
        """Hits that have not struck yet."""
        return self._striker.pending

    def kill(self, rank: int) -> bool:
        """SIGKILL the process that has `rank` now; False if none has, as it is lost already."""
        pid = self.engine.status().ranks[rank].pid
        if not pid:
            return False
        with self._lock:
            self.history.kills.append(Kill(time.monotonic(), rank))
        os.kill(pid, signal.SIGKILL)
        self.on_kill()
        return True

    def _calm(self) -> bool:
        status = self.engine.status()
        ready = sum(standby.state == "ready" for standby in status.standbys)
        up = status.state == "serving" and all(rank.state == "up" for rank in status.ranks)
        return up and ready >= self.config.standbys and not status.num_running and not status.num_waiting

    def _observe(self, name: str, details: dict[str, object]) -> None:
        now = time.monotonic()
        match name:
            case "step":
                self._sent = now
                plan = details["plan"]
                assert isinstance(plan, StepPlan)
                if not details["replay"]:
                    self._striker.step_sent(plan)
            case "answered":
                entry = details["entry"]
                assert isinstance(entry, LoggedStep)
                with self._lock:
                    self.history.steps.append(Step(self._sent, now, _shares(entry)))
            case "lost":
                with self._lock:
                    self.history.lost.append(now)
            case "resumed":
                record = details["record"]
                assert isinstance(record, RecoveryRecord)
                with self._lock:
                    self.history.resumed.append((now, record))
                self._striker.resumed()


def _shares(entry: LoggedStep) -> tuple[Share, ...]:
    drawn = entry.accepted or {}
    return tuple(
        Share(part.request_id, part.start, part.start + len(part.token_ids), part.request_id in drawn)
        for part in entry.plan.parts
    )
