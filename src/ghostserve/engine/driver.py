"""The recovery driver: what workers say becomes the machine's events, its commands become processes and messages."""

import logging
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import replace

from ghostserve.engine import messages as msg
from ghostserve.engine.memory import EngineMemory
from ghostserve.engine.refill import Refill, Share
from ghostserve.engine.scheduler import Request
from ghostserve.engine.serving import Serving
from ghostserve.errors import GhostServeError
from ghostserve.parity.ranges import num_slots, without
from ghostserve.parity.reader import Fault
from ghostserve.recovery import events as ev
from ghostserve.recovery.hybrid import Policy, Split, split
from ghostserve.recovery.machine import Phase, RecoveryMachine
from ghostserve.recovery.planner import KVState, RecoveryPlan, plan_recovery
from ghostserve.recovery.rates import RateBook
from ghostserve.status import RecoveryRecord
from ghostserve.workers.group import Exited, WorkerGroup
from ghostserve.workers.rendezvous import Rendezvous, host_rendezvous

__all__ = ["Observer", "RecoveryDriver"]

Observer = Callable[[str, dict[str, object]], None]
"""Told of what happens, by name: for the demo's picture and for tests that strike at a chosen moment."""

log = logging.getLogger("ghostserve.recovery")


class RecoveryDriver:
    """Owns the machine. `replay` holds the steps that a recovery runs again; the coordinator sends them one by one."""

    def __init__(
        self,
        machine: RecoveryMachine,
        group: WorkerGroup[msg.FromWorker],
        memory: EngineMemory,
        serving: Serving,
        observer: Observer,
        recovery: Policy = "hybrid",
    ) -> None:
        """`recovery`: how lost KV comes back, where there is a choice."""
        self.machine = machine
        self.replay: list[int] = []
        self.records: list[RecoveryRecord] = []
        self.failure: GhostServeError | None = None
        self.ready: set[int] = set()
        self.warm: set[int] = set()
        """Standbys that have nothing left to do but to wait."""
        self._group = group
        self._memory = memory
        self._serving = serving
        self._observer = observer
        self._rendezvous: Rendezvous | None = None
        self.rates = RateBook()
        self._policy: Policy = recovery
        self._disturbed = False
        """A refill was cut off since the last resume: the next one only rebuilds, which waits for nobody."""
        self._refill: Refill | None = None
        self._plan: RecoveryPlan | None = None
        self._handles: dict[int, bytes] = {}
        """worker -> how its peers map its cache, of those who have joined the present epoch."""
        self.counts: Counter[str] = Counter(dict.fromkeys(("corrected_slots", "damaged_slots", "failed_slots"), 0))
        """For the status, from the start on: what rebuilds found damaged, and what they could not bring back."""
        self._reset_counts()

    # ---- in

    def start(self) -> None:
        self._carry_out(self.machine.start(time.monotonic()))

    def close(self) -> None:
        """Give the rendezvous' sockets and thread back."""
        self._rendezvous = None

    def tick(self) -> None:
        self.tell(ev.Tick())

    def tell(self, event: ev.Event) -> None:
        """Hand the machine an event and do what it says."""
        before = self.machine.phase
        commands = self.machine.handle(event, time.monotonic())
        if self.machine.phase is not before:
            self._observer("phase", {"phase": str(self.machine.phase), "epoch": self.machine.epoch})
        self._carry_out(commands)

    def hear(self, worker: int, message: msg.FromWorker | Exited) -> None:
        """What a worker said about itself or the group, in this epoch (steps and flushes are the coordinator's)."""
        match message:
            case Exited():
                self.tell(ev.WorkerLost(worker, str(message)))
            case msg.WorkerFailed(said, True, error):
                self.tell(ev.CommunicatorBroke(worker, said, error))
            case msg.WorkerFailed(_, False, error):
                self.tell(ev.WorkerLost(worker, error))
            case msg.Hello():
                self.ready.add(worker)
                self.tell(ev.WorkerReady(worker))
            case msg.Warm():
                self.warm.add(worker)
            case msg.Loaded(rank, _):
                self.tell(ev.Loaded(worker, rank))
            case msg.Joined(said, handle):
                self._joined(worker, said, handle)
            case msg.Attached(said):
                self.tell(ev.Joined(worker, said))
            case msg.Released(said):
                self.tell(ev.Released(worker, said))
            case msg.Pong(_, waiting):
                self.tell(ev.Probed(worker, waiting))
            case msg.RebuildDone():
                self._rebuilt(worker, message)
            case msg.Recomputed():
                if self._refill is not None:
                    self._refill.ran(worker, message)
                    self._refilled()
            case _:
                raise AssertionError(f"unexpected {type(message).__name__}")

    def _joined(self, worker: int, epoch: int, handle: bytes) -> None:
        """A rank is in the group. Where caches are mapped by handles, its join ends when it has mapped all of them."""
        if epoch != self.machine.epoch or not handle:
            self.tell(ev.Joined(worker, epoch))
            return
        self._handles[worker] = handle
        members = [self.machine.members[rank] for rank in sorted(self.machine.members)]
        if all(member in self._handles for member in members):
            attach = msg.Attach(epoch, tuple(self._handles[member] for member in members))
            for member in members:
                self._group.send(member, attach)

    def replayed(self) -> None:
        """The last step to be replayed was answered."""
        self.tell(ev.Replayed(self.machine.epoch))

    # ---- out

    def _carry_out(self, commands: list[ev.Command]) -> None:
        for command in commands:
            match command:
                case ev.Kill(worker, reason):
                    log.warning("worker %d is out: %s", worker, reason)
                    self._observer("lost", {"worker": worker, "reason": reason})
                    self._group.kill(worker)
                case ev.Spawn(cold):
                    worker = self._group.spawn()
                    self.machine.spawned(worker)
                    self._observer("spawn", {"worker": worker, "pid": self._group.pid(worker), "cold": cold})
                case ev.Release(worker, epoch):
                    self._fence(epoch)
                    self._group.send(worker, msg.Release(epoch))
                case ev.Wipe(rank):
                    self._group.reap()
                    self._bytes_lost += self._wipe(rank)
                case ev.Load(worker, rank):
                    # Until here the dead have ended beside the survivors' leaving; now their memory is needed.
                    self._group.reap()
                    self._group.send(worker, msg.Load(rank))
                case ev.Join(epoch, members):
                    self._fence(epoch)
                    self._rendezvous = host_rendezvous()
                    for worker in members:
                        self._group.send(worker, msg.Join(epoch, self._rendezvous.port, self._rendezvous.secret))
                case ev.Rebuild(epoch, lost_ranks, targets):
                    self._rebuild(epoch, lost_ranks, targets)
                case ev.Replay():
                    self._start_replay()
                case ev.Resume(epoch, timeline):
                    self._resume(epoch, timeline)
                case ev.Probe(worker):
                    self._group.send(worker, msg.Ping(worker))
                case ev.GiveUp(reason):
                    log.error("the engine gives up: %s", reason)
                    self.failure = GhostServeError(f"the engine has failed: {reason}")

    def _fence(self, epoch: int) -> None:
        """From here on nothing of an older epoch is accepted: no parity write, no answer, no rendezvous."""
        self._rendezvous = None  # whoever still waits in the old one raises
        self._handles.clear()
        self._plan = None
        if self._refill is not None and not self._refill.over:
            self._disturbed = True
        self._refill = None
        self.replay = []
        store = self._memory.store
        if store is not None and store.epoch < epoch:
            store.advance(epoch)

    def _wipe(self, rank: int) -> int:
        lost = self._memory.wipe(rank, self._serving.live_slots())
        self._observer("wiped", {"rank": rank, "bytes": lost})
        return lost

    def _rebuild(self, epoch: int, lost_ranks: tuple[int, ...], targets: tuple[tuple[int, int], ...]) -> None:
        states = self._make_plan(lost_ranks)
        plan = self._plan
        assert plan is not None
        found = self._split(plan, states)
        for reason in found.reasons:
            log.info("plan: %s", reason)
        self._plan = replace(plan, reasons=(*plan.reasons, *found.reasons))
        shares = [Share(part, *self._serving.part_again(part)) for part in found.recompute]
        self._refill = Refill(
            epoch=epoch,
            lost_ranks=lost_ranks,
            targets=tuple(worker for worker, _ in targets),
            members=dict(self.machine.members),
            rebuild=without(plan.rebuild, [r for share in shares for r in share.ranges]),
            shares=deque(shares),
            split=found,
            send=self._group.send,
        )
        self._refill.start()

    def _split(self, plan: RecoveryPlan, states: Sequence[KVState]) -> Split:
        if not self._memory.arenas or self._memory.store is None or plan.start_over:
            return Split((), ())  # the host does not reach the caches, or there is nothing to compare with
        policy: Policy = "rebuild" if self._disturbed else self._policy
        contexts = [state.parts for state in states if state.request_id not in plan.recompute]
        return split(contexts, self.rates.rates(), policy)

    def _make_plan(self, lost_ranks: tuple[int, ...]) -> list[KVState]:
        serving, memory = self._serving, self._memory
        serving.roll_back(memory.is_committed)
        states = serving.kv_states(memory.count_missing)
        plan = plan_recovery(
            states,
            steps_after_watermark=serving.steps_after_watermark(),
            lost_ranks=lost_ranks,
            shard_map=serving.shard_map,
            parity=memory.code.k if memory.code is not None else 0,
        )
        for reason in plan.reasons:
            log.info("plan: %s", reason)
        self._plan = plan
        serving.pin(plan.replay)
        for request in serving.start_over() if plan.start_over else serving.recompute(plan.recompute):
            self._note_recomputed([request], plan.recompute.get(request.request_id, plan.reasons[0]))
        return states

    def _rebuilt(self, worker: int, done: msg.RebuildDone) -> None:
        self._bytes_rebuilt += done.bytes_rebuilt + done.bytes_copied
        self._bytes_read += done.bytes_read
        self._note_faults(done.corrected, "corrected")
        self._note_faults(done.damaged, "damaged")
        self.counts["failed_slots"] += num_slots(done.failed)
        for failed, reason in zip(done.failed, done.reasons, strict=False):
            log.warning(
                "rank %d, block %d, slots %d..%d: %s",
                done.rank,
                failed.block,
                failed.start,
                failed.stop,
                reason,
            )
        if done.failed:
            ids = sorted(self._serving.owners(done.failed))
            self._note_recomputed(self._serving.recompute(ids), done.reasons[0])
        assert self._refill is not None
        self._refill.rebuilt(worker)
        self._refilled()

    def _note_faults(self, faults: Sequence[Fault], outcome: str) -> None:
        """Bytes that did not match their checksums: counted by slot, as each newcomer found them."""
        for fault in faults:
            slots = fault.slots
            log.warning(
                "%s, block %d, slots %d..%d: the bytes do not match their recorded checksums (%s)",
                f"parity shard {fault.shard}" if fault.rank is None else f"rank {fault.rank}",
                slots.block,
                slots.start,
                slots.stop,
                "put right" if outcome == "corrected" else "left as they are",
            )
            self.counts[f"{outcome}_slots"] += slots.num_slots

    def _refilled(self) -> None:
        """All that was lost is there again: remember how fast, and tell the machine."""
        refill = self._refill
        assert refill is not None
        if not refill.over:
            return
        self._learn(refill)
        for worker in refill.targets:
            self.tell(ev.Rebuilt(worker, refill.epoch))

    def _learn(self, refill: Refill) -> None:
        rates, book = self.rates.rates(), self.rates
        if not refill.tried:
            book.saw_rebuild(refill.rebuilt_slots, refill.rebuild_seconds)
            return
        book.saw_recomputed(refill.tried, refill.recomputed)
        if rates is not None and refill.seconds is not None and not refill.rejected:
            alone = sum(rates.recompute(part) for part in refill.split.recompute)
            book.saw_both(rates.rebuild(refill.rebuilt_slots), alone, refill.seconds)

    def _start_replay(self) -> None:
        if self._plan is None:  # no rank lost its KV
            self._make_plan(())
        assert self._plan is not None
        self.replay = list(self._plan.replay)
        self._replayed = len(self.replay)
        if not self.replay:
            self.replayed()

    def _resume(self, epoch: int, timeline: ev.Timeline) -> None:
        refill, self._refill, self._disturbed = self._refill, None, False
        record = RecoveryRecord(
            epoch=epoch,
            reason=timeline.reason,
            lost_ranks=list(timeline.lost_ranks),
            seconds=timeline.seconds,
            bytes_rebuilt=self._bytes_rebuilt,
            bytes_lost=self._bytes_lost,
            bytes_read=self._bytes_read,
            replayed_steps=self._replayed,
            recomputed_requests=self._recomputed,
            recomputed_slots=refill.recomputed if refill is not None else 0,
            rejected_slots=refill.rejected if refill is not None else 0,
            refill_seconds=(refill.seconds or 0.0) if refill is not None else 0.0,
            predicted_seconds=refill.split.seconds if refill is not None else None,
            plan=list(self._plan.reasons) if self._plan is not None else [],
            phases=[(name, at - timeline.started) for name, at in timeline.marks],
        )
        started = timeline.reason == "start" or timeline.reason.startswith("start;")
        if not started:
            self.records.append(record)
            log.warning(
                "recovered in %.2f s, epoch %d: %s; %d bytes rebuilt, %d steps replayed, %d requests recomputed",
                record.seconds, epoch, record.reason, record.bytes_rebuilt, record.replayed_steps,
                record.recomputed_requests,
            )  # fmt: skip
        self._reset_counts()
        self._plan = None
        self._observer("started" if started else "resumed", {"record": record})

    def _note_recomputed(self, requests: list[Request], reason: str) -> None:
        for request in requests:
            log.warning("request %s is recomputed from its tokens: %s", request.request_id, reason)
        self._recomputed += len(requests)

    def _reset_counts(self) -> None:
        self._bytes_rebuilt = self._bytes_lost = self._bytes_read = self._replayed = self._recomputed = 0

    # ---- for the status

    @property
    def serving_now(self) -> bool:
        return self.machine.phase in (Phase.SERVING, Phase.PROBING)
