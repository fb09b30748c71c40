"""Carries out what the recovery machine says: processes, messages, and what workers are asked in which order.

What is asked is written as scripts: generators that yield a question to the workers and get its answers, so that each
phase reads from top to bottom while the coordinator's loop goes on watching.
"""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ghostserve.errors import GhostServeError
from ghostserve.parity.ranges import num_slots
from ghostserve.recovery import events as ev
from ghostserve.recovery.machine import Phase, RecoveryMachine
from ghostserve.status import RecoveryRecord
from ghostserve.vllm import messages as msg
from ghostserve.vllm.calls import Calls
from ghostserve.vllm.protection import Protection
from ghostserve.vllm.queues import EpochQueues, QueueError, remove_leftovers
from ghostserve.vllm.replay import Ask, Replay, Script
from ghostserve.workers.group import WorkerGroup
from ghostserve.workers.rendezvous import Rendezvous, host_rendezvous

__all__ = ["Driver"]

_CONNECT_SECONDS = 15.0
_SLICE = 0.005

log = logging.getLogger("vllm.ghostserve.recovery")


@dataclass
class _Run:
    """A script under way: its present question, since when it waits, and which ranks have answered."""

    script: Script
    ask: Ask
    since: float
    answers: dict[int, Any]


class Driver:
    """Owns the machine. Everything runs on the coordinator's thread; `calls` says what it shares with the engine's."""

    def __init__(
        self,
        machine: RecoveryMachine,
        group: WorkerGroup[msg.FromWorker],
        calls: Calls,
        make_queues: Callable[[], EpochQueues],
        *,
        skip_rebuild: bool,
        on_failure: Callable[[GhostServeError], None],
    ) -> None:
        self.machine, self.records = machine, list[RecoveryRecord]()
        self.failure: GhostServeError | None = None
        self.protection: Protection | None = None
        """Set by the executor when the cache exists."""
        self.setup: list[tuple[str, tuple[Any, ...]]] = []
        """Calls that made the workers what they are: newcomers get them, too."""
        self.counters = {"replay_mismatches": 0.0}
        self._group, self._calls, self._make_queues = group, calls, make_queues
        self._skip_rebuild, self._on_failure = skip_rebuild, on_failure
        self._rendezvous: Rendezvous | None = None
        self._queues: EpochQueues | None = None
        self._joined: dict[int, msg.Joined] = {}
        self._members: tuple[int, ...] = ()
        self._stateful: set[int] = set()
        """Workers whose random states and requests are those of the engine."""
        self._run: _Run | None = None
        self._replay: Replay | None = None
        self._start_over = ""
        self._plan = ""
        self._bytes_rebuilt = self._bytes_read = 0

    # ---- in

    def start(self) -> None:
        self._carry_out(self.machine.start(time.monotonic()))

    def tell(self, event: ev.Event) -> None:
        """Hand the machine an event and do what it says."""
        self._carry_out(self.machine.handle(event, time.monotonic()))

    def hear(self, worker: int, message: msg.FromWorker) -> None:
        """What a worker said about itself or the group."""
        match message:
            case msg.WorkerFailed(epoch, True, error):
                self.tell(ev.CommunicatorBroke(worker, epoch, error))
            case msg.WorkerFailed(_, False, error):
                self.tell(ev.WorkerLost(worker, error))
            case msg.Hello():
                self.tell(ev.WorkerReady(worker))
            case msg.Loaded(rank):
                self.tell(ev.Loaded(worker, rank))
            case msg.Released(epoch):
                self.tell(ev.Released(worker, epoch))
            case msg.Pong(_, waiting):
                self.tell(ev.Probed(worker, waiting))
            case msg.Joined(epoch) if epoch == self.machine.epoch:
                self._joined[worker] = message
                if self._joined.keys() >= set(self._members):
                    self._meet()
            case _:
                log.debug("worker %d: %s of an older epoch dropped", worker, type(message).__name__)

    def poll(self) -> bool:
        """Go on with the script, if its answers have come; False if there is none."""
        run, queues = self._run, self._queues
        if run is None or queues is None:
            return False
        ranks = range(len(self._members)) if run.ask.reply is None else (run.ask.reply,)
        for rank in ranks:
            if rank in run.answers:
                continue
            try:
                fine, value = queues.receive(rank, _SLICE)
            except TimeoutError:
                return True
            if not fine:
                self.tell(ev.CommunicatorBroke(self._members[rank], self.machine.epoch, f"{run.ask.method}: {value}"))
                return True
            run.answers[rank] = value
        values = [run.answers[rank] for rank in ranks]
        self._advance(run.script, values if run.ask.reply is None else values[0])
        return True

    def waited(self, now: float) -> float:
        """Seconds that the present question of a replay is without an answer."""
        return now - self._run.since if self._run is not None and self.machine.phase is Phase.REPLAYING else 0.0

    def close(self) -> None:
        """Give the rendezvous' and the queues' resources back."""
        self._rendezvous = None
        self._remove_leftovers()
        if self._queues is not None:
            self._queues.cancel()
            self._queues = None

    # ---- out

    def _carry_out(self, commands: list[ev.Command]) -> None:
        for command in commands:
            match command:
                case ev.Kill(worker, reason):
                    log.warning("worker %d is out: %s", worker, reason)
                    self._group.kill(worker)
                    self._group.reap()  # who takes its place needs its memory, and its queues may be taken away
                case ev.Spawn():
                    self.machine.spawned(self._group.spawn())
                case ev.Release(worker, epoch):
                    self._fence(epoch)
                    self._group.send(worker, msg.Release(epoch))
                case ev.Wipe():
                    pass  # a rank's cache is its process's own memory, and has gone with it
                case ev.Load(worker, rank):
                    self._group.send(worker, msg.Load(rank))
                case ev.Join(epoch, members):
                    self._join(epoch, members)
                case ev.Rebuild(epoch, lost_ranks, targets):
                    self._begin(self._rebuilding(epoch, lost_ranks, targets))
                case ev.Replay(epoch):
                    self._begin(self._replaying(epoch))
                case ev.Resume(epoch, timeline):
                    self._resume(epoch, timeline)
                case ev.Probe(worker):
                    self._group.send(worker, msg.Ping(worker))
                case ev.GiveUp(reason):
                    self.fail(GhostServeError(f"the workers are lost for good: {reason}"))

    def fail(self, failure: GhostServeError) -> None:
        """There is no recovery: vLLM ends as it does without one."""
        if self.failure is None:
            self.failure = failure
            log.error("%s", failure)
            self._calls.fail(failure)
            self._on_failure(failure)

    def _fence(self, epoch: int) -> None:
        """From here on nothing of an older epoch is accepted: no parity write, no answer, no rendezvous."""
        self._rendezvous = None  # whoever still waits in the old one raises
        self._run = None
        self._calls.fence()
        self._remove_leftovers()
        queues, self._queues = self._queues, None
        if queues is not None:
            queues.cancel()
        if self.protection is not None:
            self.protection.fence(epoch)

    def _remove_leftovers(self) -> None:
        """The epoch's queues are over: take away what their owners do not, or could not, take away themselves."""
        for worker, joined in self._joined.items():
            dead = not self._group.running(worker)
            for queue in (joined.answers, joined.broadcaster):
                if queue is not None:
                    remove_leftovers(queue, dead=dead)
        self._joined.clear()

    def _join(self, epoch: int, members: tuple[int, ...]) -> None:
        self._fence(epoch)
        self._members = members
        self._rendezvous = rendezvous = host_rendezvous()
        self._queues = self._make_queues()
        for worker in members:
            self._group.send(worker, msg.Join(epoch, rendezvous.port, rendezvous.secret, self._queues.handle))

    def _meet(self) -> None:
        """Everyone is in the group: connect the queues, then see to it that all have caches and know each other's."""
        assert self._queues is not None
        try:
            self._queues.connect(
                [self._joined[worker].answers for worker in self._members],
                _CONNECT_SECONDS,
                lambda: all(self._group.running(worker) for worker in self._members),
            )
        except QueueError as error:
            self.tell(ev.CommunicatorBroke(self._members[0], self.machine.epoch, str(error)))
            return
        self._begin(self._attaching(self.machine.epoch))

    # ---- scripts

    def _begin(self, script: Script) -> None:
        self._advance(script, None)

    def _advance(self, script: Script, value: Any) -> None:
        """Send the script's next question. Nobody reads what an older script asked: a fence has new queues."""
        try:
            ask = script.send(value)
        except StopIteration:
            if self._run is not None and self._run.script is script:
                self._run = None
            return
        self._run = _Run(script, ask, time.monotonic(), {})
        assert self._queues is not None
        self._queues.send((ask.method, ask.args, {}, ask.reply))

    def _attaching(self, epoch: int) -> Script:
        if self.protection is not None:
            newcomers = tuple(rank for rank, worker in enumerate(self._members) if worker not in self._stateful)
            facts = yield Ask("prepare", (newcomers, self.setup))
            yield Ask("attach", (epoch, [fact.handle for fact in facts], self.protection.handle))
        self._run = None
        for worker in self._members:
            self.tell(ev.Joined(worker, epoch))

    def _rebuilding(self, epoch: int, lost_ranks: tuple[int, ...], targets: tuple[tuple[int, int], ...]) -> Script:
        protection = self.protection
        assert protection is not None
        with self._calls.lock:
            plan = protection.plan(lost_ranks)
        log.info("plan: %s", plan.reason)
        self._plan = plan.reason
        if plan.start_over:
            self._start_over = plan.reason
        else:
            results = yield Ask("rebuild", (lost_ranks, plan.ranges, self._skip_rebuild))
            for rank, result in enumerate(results):
                if result is not None:
                    self._note_rebuilt(rank, result)
        self._run = None
        for worker, _ in targets:
            self.tell(ev.Rebuilt(worker, epoch))

    def _note_rebuilt(self, rank: int, result: Any) -> None:
        assert self.protection is not None
        self._bytes_rebuilt += result.bytes_rebuilt
        self._bytes_read += result.bytes_read
        for slots, reason in zip(result.failed, result.reasons, strict=True):
            with self._calls.lock:
                needed = self.protection.log.is_needed(slots)
            if needed:
                log.warning("rank %d, block %d, slots %d..%d: %s", rank, slots.block, slots.start, slots.stop, reason)
                self._start_over = f"{num_slots(result.failed)} slots could not be rebuilt: {reason}"

    def _replaying(self, epoch: int) -> Script:
        if self.protection is not None:
            if not self._start_over:
                with self._calls.lock:
                    self.protection.plan(())
            ranks = [rank for rank, worker in enumerate(self._members) if worker in self._stateful]
            self._replay = Replay(
                self.protection, self._calls, survivor=ranks[0] if ranks else None, start_over=self._start_over
            )
            yield from self._replay.script()
        self._run = None
        self.tell(ev.Replayed(epoch))

    def _resume(self, epoch: int, timeline: ev.Timeline) -> None:
        assert self._queues is not None
        self._stateful = set(self._members)
        if self.protection is not None:
            self._record(epoch, timeline)
        self._bytes_rebuilt = self._bytes_read = 0
        self._start_over = self._plan = ""
        self._replay = None
        self._calls.open(self._queues)

    def _record(self, epoch: int, timeline: ev.Timeline) -> None:
        replay = self._replay
        record = RecoveryRecord(
            epoch=epoch,
            reason=timeline.reason,
            lost_ranks=list(timeline.lost_ranks),
            seconds=timeline.seconds,
            bytes_rebuilt=self._bytes_rebuilt,
            bytes_read=self._bytes_read,
            replayed_steps=replay.steps if replay is not None else 0,
            recomputed_requests=replay.recomputed if replay is not None else 0,
            plan=[self._plan] if self._plan else [],
            phases=[(name, at - timeline.started) for name, at in timeline.marks],
        )
        self.records.append(record)
        self.counters["replay_mismatches"] += replay.mismatches if replay is not None else 0
        log.warning(
            "recovered in %.2f s, epoch %d: %s; %d bytes rebuilt, %d steps replayed, %d requests recomputed",
            record.seconds, epoch, record.reason, record.bytes_rebuilt, record.replayed_steps,
            record.recomputed_requests,
        )  # fmt: skip
