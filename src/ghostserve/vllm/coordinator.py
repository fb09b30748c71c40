"""The executor's own thread: it watches the workers at all times, and leads their recoveries."""

import dataclasses
import logging
import threading
import time
from collections.abc import Callable

from vllm.config import VllmConfig

from ghostserve.errors import GhostServeError
from ghostserve.recovery import events as ev
from ghostserve.recovery.machine import MachineSettings, Phase, RecoveryMachine
from ghostserve.status import EngineStatus, RankStatus, StandbyStatus
from ghostserve.vllm import messages as msg
from ghostserve.vllm.calls import Calls
from ghostserve.vllm.config import PluginConfig
from ghostserve.vllm.protection import Protection
from ghostserve.vllm.queues import EpochQueues
from ghostserve.vllm.recovery import Driver
from ghostserve.vllm.workers import make_group
from ghostserve.workers.group import Exited

__all__ = ["Coordinator"]

_TICK = 0.25
_START_SECONDS = 3600.0  # the first weights may come over a slow network
_MEBIBYTE = 1 << 20

log = logging.getLogger("vllm.ghostserve")


class Coordinator(threading.Thread):
    """Start it, wait for it to serve, `stop` it. What it shares with the engine's thread is in `calls`."""

    def __init__(
        self,
        vllm_config: VllmConfig,
        config: PluginConfig,
        calls: Calls,
        *,
        max_chunk_bytes: int,
        publish: Callable[[EngineStatus], None],
        on_failure: Callable[[GhostServeError], None],
    ) -> None:
        super().__init__(name="ghostserve-coordinator", daemon=True)
        world_size = vllm_config.parallel_config.world_size
        self._config, self._calls, self._publish = config, calls, publish
        self._group = make_group(vllm_config)
        machine = RecoveryMachine(
            MachineSettings(
                world_size=world_size,
                standbys=config.standbys,
                phase_deadline=_START_SECONDS,
                max_attempts=config.max_recovery_attempts,
            )
        )
        self.driver = Driver(
            machine,
            self._group,
            calls,
            lambda: EpochQueues(world_size, max_chunk_bytes),
            skip_rebuild=config.skip_rebuild,
            on_failure=on_failure,
        )
        self._stopping = threading.Event()
        self._started = threading.Event()
        self._oldest_flush: tuple[int, int] | None = None
        self._flush_due = 0.0
        self._suspect = ""
        self._answered = 0
        self._began = time.monotonic()
        self._published = ("", 0, 0.0)

    # ---- other threads

    def wait_started(self) -> None:
        """Wait until the first group serves. Raises the failure if there is one."""
        self._started.wait()
        if self.driver.failure is not None:
            raise self.driver.failure

    def protect(self, protection: Protection) -> None:
        """The caches exist and are attached: from now on a loss is recovered from."""
        with self._calls.lock:
            self.driver.protection = protection

    def stop(self) -> None:
        """End the workers and this thread. Idempotent."""
        self._stopping.set()
        if self.is_alive():
            self._group.wake()
            self.join()

    # ---- the thread

    def run(self) -> None:
        try:
            self.driver.start()
            while not self._stopping.is_set() and self.driver.failure is None:
                self._turn()
        except Exception as error:  # the thread's last line of defence: nobody may wait for a dead coordinator
            log.exception("the coordinator failed")
            self.driver.fail(GhostServeError(f"the coordinator failed: {error!r}"))
        finally:
            self._finish()

    def _turn(self) -> None:
        busy = self.driver.poll()
        for worker, message in self._group.poll(0.0 if busy else _TICK):
            self._hear(worker, message)
        self._watch()
        if self.driver.machine.phase is Phase.SERVING and not self._started.is_set():
            self._note_start()
        self._report()

    def _note_start(self) -> None:
        """From now on phases have their deadline; a newcomer loads about as long as the first workers did."""
        machine = self.driver.machine
        limit = max(self._config.phase_deadline, 3 * (time.monotonic() - self._began))
        machine.settings = dataclasses.replace(machine.settings, phase_deadline=limit)
        self._started.set()

    def _hear(self, worker: int, message: msg.FromWorker | Exited) -> None:
        driver = self.driver
        self._note_steps()
        if isinstance(message, Exited):
            self._lost(worker, str(message))
        elif isinstance(message, msg.TasksDone):
            if message.epoch == driver.machine.epoch and driver.protection is not None:
                with self._calls.lock:
                    driver.protection.flushed(message.task_ids)
        elif isinstance(message, msg.WorkerFailed) and driver.protection is None:
            driver.fail(GhostServeError(f"a worker could not start: {message.error}"))
        elif isinstance(message, msg.WorkerFailed) and message.peer and self._is_own_fault(message):
            driver.fail(GhostServeError(f"a step fails on live workers each time it is run: {message.error}"))
        else:
            driver.hear(worker, message)

    def _lost(self, worker: int, reason: str) -> None:
        machine = self.driver.machine
        if self.driver.protection is None and worker in machine.members.values():
            self.driver.fail(GhostServeError(f"a worker was lost before the KV cache existed: {reason}"))
        else:
            self.driver.tell(ev.WorkerLost(worker, reason))

    def _is_own_fault(self, message: msg.WorkerFailed) -> bool:
        """The same error again, right after a recovery that had nobody to replace: it is no peer's death."""
        machine = self.driver.machine
        if message.epoch != machine.epoch or machine.phase not in (Phase.SERVING, Phase.REPLAYING):
            return False
        again = message.error == self._suspect and machine.timeline is not None and not machine.timeline.lost_ranks
        self._suspect = message.error
        return again

    def _note_steps(self) -> None:
        """Tell the machine what the engine's thread has been doing: the machine is this thread's alone."""
        with self._calls.lock:
            answered = self._calls.steps_answered
            under_way = any(call.is_step for call in self._calls.pending)
        if answered != self._answered:
            self._answered, self._suspect = answered, ""
            self.driver.machine.step_finished()
        if under_way:
            self.driver.machine.step_sent()

    def _watch(self) -> None:
        self._note_steps()
        driver, now = self.driver, time.monotonic()
        machine, deadline = driver.machine, self._config.step_deadline
        if machine.phase is Phase.SERVING:
            with self._calls.lock:
                call = next((call for call in self._calls.pending if call.is_step), None)
                overdue = call is not None and call.sent > 0 and now - call.sent > deadline
                step = call.entry.step if call is not None and call.entry is not None else 0
                if overdue and call is not None:
                    call.sent = now  # should the machine spare it, as a slow step
            if overdue:
                driver.tell(ev.StepOverdue(step))
        elif driver.waited(now) > deadline:
            driver.tell(ev.StepOverdue(0))
        self._watch_flushes(now)
        driver.tell(ev.Tick())

    def _watch_flushes(self, now: float) -> None:
        """A step's deadline does not see a flush that hangs: the oldest one has a deadline of its own."""
        driver = self.driver
        if driver.machine.phase is not Phase.SERVING or driver.protection is None:
            self._oldest_flush = None
            return
        with self._calls.lock:
            oldest = driver.protection.oldest_flush(driver.protection.log.answered)
        if oldest is None:
            self._oldest_flush = None
        elif self._oldest_flush != (driver.machine.epoch, oldest.task_id):
            self._oldest_flush = (driver.machine.epoch, oldest.task_id)
            self._flush_due = now + self._config.step_deadline
        elif now > self._flush_due:
            worker = driver.machine.members[oldest.encoder]
            driver.tell(ev.WorkerLost(worker, f"hangs in the flush of step {oldest.step}"))

    def _finish(self) -> None:
        if self.driver.failure is None:
            self._calls.fail(GhostServeError("the executor has been shut down"))
        self._group.close()
        self.driver.close()
        self._publish(self.status())
        if self.driver.protection is not None:
            self.driver.protection.close()
        self._started.set()

    # ---- reporting

    def _report(self) -> None:
        """Publish what has changed, and else from time to time."""
        machine = self.driver.machine
        state, epoch, at = self._published
        now = time.monotonic()
        if (state, epoch) != (machine.phase, machine.epoch) or now - at > _TICK:
            self._published = (machine.phase, machine.epoch, now)
            self._publish(self.status())

    def status(self) -> EngineStatus:
        """A snapshot."""
        driver, machine = self.driver, self.driver.machine
        serving = machine.phase in (Phase.SERVING, Phase.PROBING)
        ranks = []
        for rank in range(machine.settings.world_size):
            worker = machine.members.get(rank)
            alive = worker is not None and self._group.alive(worker)
            state = ("up" if serving else "recovering") if alive else "lost"
            ranks.append(RankStatus(rank, self._group.pid(worker) if alive and worker is not None else 0, state))
        standbys = [StandbyStatus(self._group.pid(w), "ready") for w in machine.standbys if self._group.alive(w)]
        standbys += [StandbyStatus(self._group.pid(w), "starting") for w in machine.starting if self._group.alive(w)]
        with self._calls.lock:
            protection = driver.protection
            step = protection.log.last if protection is not None else 0
            watermark = protection.ledger.watermark if protection is not None else 0
            unprotected = protection.ledger.unprotected_tokens if protection is not None else 0
        store = protection.store if protection is not None else None
        return EngineStatus(
            state="failed" if driver.failure is not None else "serving" if serving else "recovering",
            epoch=machine.epoch,
            step=step,
            watermark=watermark,
            ranks=ranks,
            standbys=standbys,
            data_path=protection.data_path if protection is not None else "none",
            protect="parity" if store is not None else "none",
            parity=self._config.parity,
            parity_bytes=store.geometry.payload_bytes if store is not None else 0,
            unprotected_tokens=unprotected,
            recoveries=list(driver.records),
            counters=dict(driver.counters),
        )
