"""The coordinator: one thread that schedules steps, watches the ranks and carries out recoveries."""

import logging
import queue
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from ghostserve.checkpoint.ledger import CheckpointLedger
from ghostserve.engine import messages as msg
from ghostserve.engine.blocks import BlockManager
from ghostserve.engine.config import EngineConfig
from ghostserve.engine.driver import Observer, RecoveryDriver
from ghostserve.engine.launch import WorkerConfig, make_group
from ghostserve.engine.memory import EngineMemory
from ghostserve.engine.modelspec import ModelSpec
from ghostserve.engine.placement import CPU, Placement
from ghostserve.engine.pulse import PulseWatch
from ghostserve.engine.scheduler import Request, Scheduler
from ghostserve.engine.scrub_driver import ScrubDriver
from ghostserve.engine.serving import LoggedStep, Serving
from ghostserve.errors import GhostServeError, RequestError
from ghostserve.parity.budget import ParityBudget
from ghostserve.recovery import events as ev
from ghostserve.recovery.hybrid import Part
from ghostserve.recovery.machine import MachineSettings, Phase, RecoveryMachine
from ghostserve.sampling import TokenOutput
from ghostserve.status import EngineStatus, RankStatus, StandbyStatus
from ghostserve.workers.group import Exited

__all__ = ["Coordinator", "Options", "Sink"]

Sink = Callable[[TokenOutput | GhostServeError], None]
"""Takes a request's tokens, or the error that ended it. Called on the coordinator's thread: must not block."""

log = logging.getLogger("ghostserve.engine")

_TICK = 0.25
_PULSE_SECONDS = 1.0
"""How often every worker is asked whether it is there."""
_PULSE = -1
"""The token of that question; of others it is a worker's number."""


@dataclass(frozen=True)
class Options:
    """What tests, the demo and benchmarks ask for beyond the settings."""

    observer: Observer = lambda name, details: None
    record: bool = False
    """Keep every step plan, so that the same schedule can be run again undisturbed."""
    skip_rebuild: bool = False
    """Sabotage: newcomers keep their poisoned KV. For the proof that a comparison can fail."""


@dataclass(frozen=True)
class _Submit:
    request: Request
    sink: Sink


@dataclass(frozen=True)
class _Abort:
    request_id: str


class Coordinator(threading.Thread):
    """Start it, `submit` requests, `stop` it. All state belongs to its thread; other threads use the inbox."""

    def __init__(
        self, config: EngineConfig, spec: ModelSpec, options: Options | None = None, placement: Placement = CPU
    ) -> None:
        """Takes shared memory; raises `MemoryBudgetError` or `ConfigError` before anything is started."""
        super().__init__(name="coordinator", daemon=True)
        self.config = config
        self.spec = spec
        self._options = options or Options()
        self._inbox: queue.SimpleQueue[_Submit | _Abort] = queue.SimpleQueue()
        self._door = threading.Lock()
        """Held to put into the inbox, and to close it: what is in it is always answered."""
        self._closed = False
        self._stopping = threading.Event()
        self._serving_once = threading.Event()
        self._sinks: dict[str, Sink] = {}
        self.placement = placement
        self._memory = EngineMemory(config, spec, placement)
        store = self._memory.store
        self._group = make_group(
            WorkerConfig(
                spec=spec,
                protect=config.strategy.name,
                parity=config.parity,
                arena_fds=tuple(arena.fd for arena in self._memory.arenas),
                store_fds=store.fds if store is not None else (),
                num_parity_blocks=self._memory.num_parity_blocks,
                threads=WorkerConfig.threads_for(spec.tensor_parallel_size),
                device=placement.device,
                devices=placement.devices,
                data_path=placement.data_path,
                weight_fds=tuple(region.fd for region in self._memory.weights),
                weight_bytes=self._memory.weight_bytes,
                environment=placement.environment,
                skip_rebuild=self._options.skip_rebuild,
            )
        )
        self.serving = self._make_serving()
        machine = RecoveryMachine(
            MachineSettings(
                world_size=spec.tensor_parallel_size,
                standbys=config.standbys,
                phase_deadline=config.phase_deadline,
                max_attempts=config.max_recovery_attempts,
            )
        )
        self._driver = RecoveryDriver(
            machine, self._group, self._memory, self.serving, self._options.observer, config.recovery
        )
        self._pulse = PulseWatch(every=_PULSE_SECONDS, patience=config.step_deadline)
        self._scrub = ScrubDriver(config, spec, self._memory, self.serving, self._options.observer)
        self._running_step: int | None = None
        self._step_sent = self._step_due = 0.0
        self._oldest_flush: tuple[int, int] | None = None
        self._flush_due = 0.0
        self._counts: Counter[str] = Counter()
        self._status = self._snapshot()

    # ---- for other threads

    def submit(self, request: Request, sink: Sink) -> None:
        """Queue a request. Raises `RequestError` (503) when too many wait, `GhostServeError` if the engine is dead."""
        if self._driver.failure is not None:
            raise self._driver.failure
        if self._stopping.is_set():
            raise RequestError("the server is shutting down", status=503)
        waiting = len(self._sinks) + self._inbox.qsize()
        if waiting >= self.config.max_queue + self.config.max_num_seqs:
            raise RequestError(f"{waiting} requests are in the engine, at most that many are taken", status=503)
        with self._door:
            if self._closed:
                raise self._driver.failure or RequestError("the server is shutting down", status=503)
            self._inbox.put(_Submit(request, sink))
            self._group.wake()

    def abort(self, request_id: str) -> None:
        """Drop a request and free its blocks; unknown ones are ignored."""
        with self._door:
            if not self._closed:
                self._inbox.put(_Abort(request_id))
                self._group.wake()

    def wait_started(self, timeout: float) -> None:
        """Wait until the first group serves. Raises `GhostServeError` if it fails or takes longer than `timeout`."""
        if not self._serving_once.wait(timeout):
            raise GhostServeError(f"the workers did not start within {timeout:.0f} s")
        if self.failure is not None:
            raise self.failure

    def stop(self) -> None:
        """End workers and thread, fail what is still running; returns when all is given back. Idempotent."""
        self._stopping.set()
        if self.is_alive():
            with self._door:
                if not self._closed:
                    self._group.wake()
            self.join()

    def status(self) -> EngineStatus:
        """The latest snapshot."""
        return self._status

    @property
    def failure(self) -> GhostServeError | None:
        """Why the engine is dead for good, or None."""
        return self._driver.failure

    @property
    def recording(self) -> list[LoggedStep]:
        """Every step that counted, in order; read it when the engine is idle or stopped."""
        return self.serving.recording or []

    # ---- the thread

    def run(self) -> None:
        try:
            self._driver.start()
            while not self._stopping.is_set() and self.failure is None:
                self._turn()
        except Exception as error:  # the thread's last line of defence: nobody may wait for a dead coordinator
            log.exception("the coordinator failed")
            self._driver.failure = GhostServeError(f"the coordinator failed: {error!r}")
        finally:
            self._finish()

    def _turn(self) -> None:
        for worker, message in self._group.poll(self._timeout()):
            self._hear(worker, message)
        while not self._inbox.empty():
            self._take(self._inbox.get())
        self._watch()
        if self._running_step is None:
            self._scrub.recompute()
        self._send_next()
        if self._driver.machine.phase is Phase.SERVING:
            self._scrub.go_on(self._driver.machine, self._group.send)
        self._status = self._snapshot()

    def _timeout(self) -> float:
        return 0.0 if not self._inbox.empty() else _TICK

    def _hear(self, worker: int, message: msg.FromWorker | Exited) -> None:
        if self._is_stale(message):
            log.debug("worker %d: %s of another epoch dropped", worker, type(message).__name__)
            return
        epoch = self._driver.machine.epoch
        match message:
            case msg.StepDone(_, step, sampled):
                if step == self._running_step:
                    self._step_done(step, sampled)
            case msg.TasksDone(_, task_ids, seconds):
                self.serving.tasks_done(task_ids)
                self._options.observer("committed", {"tasks": task_ids, "seconds": seconds})
            case msg.FlushAbandoned(_, task_id, error):
                log.warning("flush task %d of worker %d: its slots stay unprotected: %s", task_id, worker, error)
                self._counts["failed_flushes"] += 1
                self._scrub.refused(task_id)
                self.serving.tasks_done((task_id,))
            case msg.Scrubbed():
                self._scrub.heard(message)
            case msg.Pong(token) if token == _PULSE:
                self._pulse.heard(worker)
            case _:
                self._driver.hear(worker, message)
                if self._driver.machine.epoch != epoch:
                    self._fenced()

    def _is_stale(self, message: msg.FromWorker | Exited) -> bool:
        """Said in another epoch than the present one. What a worker says of itself alone is true in any epoch."""
        match message:
            case msg.StepDone() | msg.TasksDone() | msg.FlushAbandoned() | msg.Scrubbed():
                return message.epoch != self._driver.machine.epoch
            case msg.Joined() | msg.Attached() | msg.Released() | msg.RebuildDone() | msg.Recomputed():
                return message.epoch != self._driver.machine.epoch
            case msg.WorkerFailed(epoch, True):
                return epoch != self._driver.machine.epoch
            case _:
                return False

    def _take(self, item: _Submit | _Abort) -> None:
        match item:
            case _Submit(request, sink):
                self._sinks[request.request_id] = sink
                self.serving.scheduler.add(request)
                self._counts["prompt_tokens"] += len(request.prompt)
            case _Abort(request_id):
                if self._sinks.pop(request_id, None) is not None:
                    self.serving.abort(request_id)
                    self._counts["aborted_requests"] += 1

    def _watch(self) -> None:
        machine = self._driver.machine
        epoch = machine.epoch
        if self._running_step is not None and time.monotonic() > self._step_due and machine.phase is not Phase.PROBING:
            self._step_due += self.config.step_deadline  # should the machine spare it, as a slow step
            self._driver.tell(ev.StepOverdue(self._running_step))
        self._watch_flushes()
        self._watch_pulses()
        self._driver.tick()
        if machine.epoch != epoch:
            self._fenced()
        if machine.phase is Phase.SERVING and not self._serving_once.is_set():
            self._serving_once.set()

    def _fenced(self) -> None:
        self._running_step = None  # its answer would be refused
        self._scrub.fenced()

    def _watch_flushes(self) -> None:
        """A step's deadline does not see a flush that hangs: the oldest one has a deadline of its own."""
        machine, now = self._driver.machine, time.monotonic()
        oldest = next((t for t in self.serving.ledger.outstanding if t.step != self._running_step), None)
        if machine.phase is not Phase.SERVING or oldest is None:
            self._oldest_flush = None
        elif self._oldest_flush != (machine.epoch, oldest.task_id):
            self._oldest_flush = (machine.epoch, oldest.task_id)
            self._flush_due = now + self.config.step_deadline
        elif now > self._flush_due:
            worker = machine.members[oldest.encoder]
            self._driver.tell(ev.WorkerLost(worker, f"hangs in the flush of step {oldest.step}"))

    def _watch_pulses(self) -> None:
        """Steps and flushes have deadlines; a rank that idles or recovers, and a standby, may hang all the same."""
        machine = self._driver.machine
        alive = [worker for worker in (*machine.members.values(), *machine.standbys) if worker in self._driver.ready]
        look = self._pulse.look(alive, time.monotonic())
        for worker in look.ask:
            self._group.send(worker, msg.Ping(_PULSE))
        for worker in look.silent:
            self._driver.tell(ev.WorkerLost(worker, f"hangs: no answer for {self.config.step_deadline} s"))

    def _send_next(self) -> None:
        if self._running_step is not None:
            return
        phase = self._driver.machine.phase
        if phase is Phase.REPLAYING:
            if self._driver.replay:
                self._send(self.serving.replay_plan(self._driver.replay[0]))
        elif phase is Phase.SERVING:
            plan = self.serving.next_plan()
            if plan is not None:
                self._send(plan)

    def _send(self, plan: msg.StepPlan) -> None:
        machine = self._driver.machine
        if machine.phase is Phase.SERVING:
            machine.step_sent()
        self._running_step = plan.step
        self._step_sent = time.monotonic()
        self._step_due = self._step_sent + self.config.step_deadline
        self._scrub.flushing(plan.flush)
        for worker in machine.members.values():
            self._group.send(worker, msg.RunStep(machine.epoch, plan))
        self._options.observer("step", {"plan": plan, "replay": machine.phase is Phase.REPLAYING})

    def _step_done(self, step: int, sampled: tuple[msg.Sampled, ...]) -> None:
        self._running_step = None
        parts = [Part(p.request_id, p.start, p.start + len(p.token_ids)) for p in self.serving.log[step].plan.parts]
        taken = time.monotonic() - self._step_sent
        self._driver.rates.saw_step(sum(p.tokens for p in parts), sum(p.keys for p in parts), taken)
        machine = self._driver.machine
        machine.step_finished()
        entry = self.serving.log[step]
        replayed = entry.accepted is not None
        new = self.serving.step_done(step, sampled)
        if not replayed:
            self._options.observer("answered", {"entry": entry})
        for accepted in new:
            drawn = accepted.sampled
            self._deliver(
                accepted.request.request_id,
                TokenOutput(drawn.token_id, drawn.logprob, drawn.top_logprobs, accepted.finish_reason),
            )
        if machine.phase is Phase.REPLAYING and self._driver.replay:
            self._driver.replay.pop(0)
            if not self._driver.replay:
                self._driver.replayed()

    def _deliver(self, request_id: str, output: TokenOutput) -> None:
        self._counts["generation_tokens"] += 1
        sink = self._sinks.get(request_id)
        if output.finish_reason is not None:
            self._sinks.pop(request_id, None)
            self._counts["finished_requests"] += 1
        if sink is not None:
            sink(output)

    def _finish(self) -> None:
        with self._door:
            self._closed = True
        failure = self._driver.failure
        error = failure or RequestError("the server is shutting down", status=503)
        while not self._inbox.empty():
            item = self._inbox.get()
            if isinstance(item, _Submit):
                item.sink(error)
        for sink in self._sinks.values():
            sink(error)
        self._sinks.clear()
        self._group.close()
        self._driver.close()
        self._status = self._snapshot()
        self._memory.close()
        self._serving_once.set()

    # ---- building and reporting

    def _make_serving(self) -> Serving:
        config, spec = self.config, self.spec
        blocks = BlockManager(spec.num_blocks, spec.block_size)
        scheduler = Scheduler(
            blocks, max_num_seqs=config.max_num_seqs, max_num_batched_tokens=config.max_num_batched_tokens
        )
        ledger = CheckpointLedger(
            spec.tensor_parallel_size,
            flush_tokens=config.flush_tokens,
            max_unprotected_tokens=config.max_unprotected_tokens,
            encoder=config.strategy.encoder("striped" if config.encoder == "striped" else "round_robin"),
        )
        ledger.begin(0)
        ledger.due(0)  # before the first step everything is committed
        budget = None
        if self._memory.store is not None:
            budget = ParityBudget(self._memory.num_parity_blocks, spec.num_blocks)
        return Serving(
            scheduler=scheduler,
            blocks=blocks,
            ledger=ledger,
            budget=budget,
            shard_map=spec.shard_map,
            max_lag=64 + config.flush_tokens,
            recording=[] if self._options.record else None,
        )

    def _snapshot(self) -> EngineStatus:
        machine, serving, driver = self._driver.machine, self.serving, self._driver
        geometry = self._memory.store.geometry if self._memory.store is not None else None
        ranks = []
        for rank in range(self.spec.tensor_parallel_size):
            worker = machine.members.get(rank)
            alive = worker is not None and self._group.alive(worker)
            state = ("up" if driver.serving_now else "recovering") if alive else "lost"
            ranks.append(RankStatus(rank, self._group.pid(worker) if alive and worker is not None else 0, state))
        # With several GPUs a standby that could take a rank already still prepares itself on all of them.
        warms_up = len(set(self.placement.devices)) > 1
        standbys = [
            StandbyStatus(self._group.pid(w), "warming" if warms_up and w not in driver.warm else "ready")
            for w in machine.standbys
            if self._group.alive(w)
        ]
        standbys += [StandbyStatus(self._group.pid(w), "starting") for w in machine.starting if self._group.alive(w)]
        protected = serving.budget.protected_tokens if serving.budget is not None else 0
        total = sum(r.num_computed for r in serving.scheduler.running)
        return EngineStatus(
            state="failed" if driver.failure is not None else "serving" if driver.serving_now else "recovering",
            epoch=machine.epoch,
            step=serving.step,
            watermark=serving.ledger.watermark,
            ranks=ranks,
            standbys=standbys,
            device=self.placement.device,
            data_path=self.placement.data_path,
            placement=[*self.placement.reasons, *self._memory.notes],
            protect=self.config.strategy.name,
            parity=self.config.parity if self.config.strategy.name == "parity" else "none",
            parity_bytes=geometry.payload_bytes if geometry is not None and not self._memory.kept.disk else 0,
            disk_bytes=self._memory.kept.disk,
            protected_tokens=protected,
            unprotected_tokens=max(0, total - protected),
            num_running=len(serving.scheduler.running),
            num_waiting=len(serving.scheduler.waiting),
            kv_cache_usage=serving.blocks.usage,
            recovering_seconds=0.0 if machine.timeline is None else time.monotonic() - machine.timeline.started,
            recoveries=list(driver.records),
            scrub_rate=self.config.scrub_rate,
            scrub_findings=list(self._scrub.findings),
            counters={
                **{name: float(value) for name, value in self._counts.items()},
                **{name: float(value) for name, value in driver.counts.items()},
                **self._scrub.counts,
                "preemptions": float(serving.preemptions),
                "replay_mismatches": float(serving.replay_mismatches),
            },
        )
