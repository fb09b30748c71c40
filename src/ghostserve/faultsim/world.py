"""One simulated engine: the product's coordinator and all that it owns, among simulated workers and faults."""

import random
from collections import Counter
from collections.abc import Sequence
from functools import partial

import numpy as np
from numpy.typing import NDArray

from ghostserve.checkpoint.encoding import encode_ranges
from ghostserve.checkpoint.tasks import FlushTask
from ghostserve.engine import messages as msg
from ghostserve.engine.coordinator import Coordinator, Options
from ghostserve.engine.datapath import HostDataPath
from ghostserve.engine.scheduler import Request
from ghostserve.engine.scrubbing import Finding
from ghostserve.errors import GhostServeError
from ghostserve.faultsim.checks import leaks, lost_commits
from ghostserve.faultsim.clock import Clock
from ghostserve.faultsim.collective import Collective
from ghostserve.faultsim.faults import Fault, FlipKV, FlipStore, Kill, KillInPhase, Slow, Strike
from ghostserve.faultsim.group import SimulatedGroup
from ghostserve.faultsim.history import Client, History
from ghostserve.faultsim.model import FakeModel
from ghostserve.faultsim.network import Network
from ghostserve.faultsim.ranks import SimulatedWorker
from ghostserve.faultsim.scenario import Ask, Scenario
from ghostserve.faultsim.store import LateStore, Write, tear
from ghostserve.faultsim.tools import Tools
from ghostserve.parity.arena import HostArena
from ghostserve.parity.paging import gather, scatter
from ghostserve.parity.ranges import SlotRange, singles
from ghostserve.recovery.machine import Phase
from ghostserve.sampling import SamplingParams, TokenOutput
from ghostserve.status import RecoveryRecord

__all__ = ["World"]

_LIMIT = 300.0
"""Virtual seconds after which a run that has not ended never will."""
_MAX_FAILED_STARTS = 3


class World:
    """Build it, let `coordinator.run()` return, look at `history`."""

    def __init__(self, seed: int, scenario: Scenario, faults: Sequence[Fault], clock: Clock, tools: Tools) -> None:
        self.scenario, self.faults, self.clock, self._tools = scenario, faults, clock, tools
        self.random = random.Random(f"world {seed}")
        self.history = History(clock.monotonic)
        self.network = Network(clock, self.random, faults, self.history.note)
        self.group = SimulatedGroup(self)
        self.model: FakeModel = tools.model(scenario.spec)
        self._collectives: dict[int, Collective] = {}
        self._kv: tuple[int, int, list[NDArray[np.uint64]]] = (0, 0, [])
        self._visits: Counter[str] = Counter()
        self._strikes = {(f.point, f.nth): f for f in faults if isinstance(f, Strike)}
        self._slow: dict[int, float] = {}
        self._rebuilds: set[int] = set()
        self._most_lost = 0
        # A flipped bit costs its slot one more shard; in KV it is put right by the recovery in which it is found.
        self._damaged_parity = self._damaged_kv = 0
        self._damaged_records = self._damaged = False
        self._found: set[tuple[str, SlotRange]] = set()
        self._flushed_again = False
        """A rank that dies while it flushes damaged slots again leaves them uncommitted: then recomputing is fair."""
        self._failed_starts = 0
        self.recoveries = 0
        self.recomputed = 0

    def furnish(self, coordinator: Coordinator) -> None:
        """The coordinator has made its memory: share it with the workers, and plan what will happen."""
        self.coordinator = coordinator
        memory = coordinator._memory
        assert memory.store is not None
        self.store = memory.store
        self.code = self._tools.code(self.scenario.config.parity, self.store.geometry.num_data)
        self.late_store = LateStore.beside(self.store)
        self.arenas = [HostArena(region.array) for region in memory.arenas]
        self.caches = [region.array for region in memory.arenas]
        self.layout, self.shard_map = memory.layout, self.scenario.spec.shard_map
        self.path = HostDataPath(
            store=self.store, code=self.code, arenas=self.arenas, layout=self.layout, shard_map=self.shard_map,
            backend=self._tools.backend,
        )  # fmt: skip
        for number, ask in enumerate(self.scenario.asks):
            self.clock.after(ask.at, partial(self._ask, f"request {number}", ask))
        for fault in self.faults:
            match fault:
                case Kill(at):
                    self.clock.after(at, partial(self._kill, fault))
                case Slow(at):
                    self.clock.after(at, partial(self._slow_down, fault))
                case FlipStore(at):
                    self.clock.after(at, partial(self._flip_store, fault))

    def options(self) -> Options:
        return Options(observer=self._observe)

    def close(self) -> None:
        """Give back what the coordinator does not own, and every view of what it has given up."""
        self.path.close()
        self.late_store.close()
        self.arenas.clear()
        self.caches.clear()

    # ---- clients

    def _ask(self, name: str, ask: Ask) -> None:
        client = Client(name, self.model.expected(ask.prompt, ask.max_tokens, ask.seed))
        self.history.clients[name] = client
        self.history.note(f"{name} asks: {len(ask.prompt)} prompt tokens, {ask.max_tokens} to come")
        params = SamplingParams(max_tokens=ask.max_tokens, ignore_eos=True)

        def hear(output: TokenOutput | GhostServeError) -> None:
            phase = self.coordinator._driver.machine.phase
            if phase in (Phase.RELEASING, Phase.REJOINING, Phase.REBUILDING):
                self.history.broken(f"{name} was sent an answer of a group that is gone ({phase})")
            self.history.hear(client, output)
            if ask.patience is not None and client.got > ask.patience and not client.over:
                self.history.note(f"{name} hangs up")
                client.hung_up = True
                self.coordinator.abort(name)

        self.coordinator.submit(Request(name, ask.prompt, params, ask.seed, frozenset()), hear)

    # ---- what workers use

    def collective(self, epoch: int) -> Collective:
        """The group that meets under `epoch`."""
        return self._collectives.setdefault(epoch, Collective(self.clock, self.random, self.scenario.ranks))

    def scramble(self, rank: int) -> None:
        """New memory: anything may be in it."""
        self.caches[rank][:] = np.frombuffer(self.random.randbytes(self.caches[rank].nbytes), dtype=np.uint8)

    def slowness(self, rank: int) -> float:
        return self._slow.get(rank, 1.0)

    def step_kv(self, epoch: int, plan: msg.StepPlan) -> list[NDArray[np.uint64]]:
        """What all ranks write in this step, computed when the first of them gets there."""
        if self._kv[:2] != (epoch, plan.step):
            self._kv = epoch, plan.step, [self.model.chunk(part, self.caches) for part in plan.parts]
        return self._kv[2]

    def sample(self, plan: msg.StepPlan) -> tuple[msg.Sampled, ...]:
        drawn = (self.model.sample(part, self.caches) for part in plan.parts)
        return tuple(token for token in drawn if token is not None)

    def encode(self, epoch: int, task: FlushTask) -> list[Write]:
        """Read and encode now what `commit` writes later: anything may come between the two."""
        encode_ranges(
            store=self.late_store, code=self.code, backend=self._tools.backend, arenas=self.arenas,
            layout=self.layout, shard_map=self.shard_map, epoch=epoch, ranges=task.ranges,
        )  # fmt: skip
        return self.late_store.take()

    def commit(self, write: Write) -> None:
        self.store.write(write.epoch, write.ranges, write.parity, write.checksums)
        if write.epoch != self.store.epoch:
            self.history.broken(f"parity of epoch {write.epoch} was written in epoch {self.store.epoch}")

    # ---- faults

    def strike(self, point: str, worker: SimulatedWorker, writes: list[Write] | None) -> bool:
        """`worker` is at `point`; True if that is where it ends, or hangs."""
        self._visits[point] += 1
        fault = self._strikes.get((point, self._visits[point]))
        if fault is None:
            return False
        self.history.note(
            f"FAULT at {point} number {fault.nth}: worker {worker.number} (rank {worker.rank}) {fault.how}"
        )
        if fault.how == "silent":
            worker.silent = True
        elif fault.how != "busy":
            if fault.how == "tear" and writes:
                tear(self.store, writes[0], fault.cut)
            self.group.dies(worker.number)
            self._kill_members(fault.others)
        return True

    def _kill(self, fault: Kill) -> None:
        if fault.standby:
            for number in self.coordinator._driver.machine.standbys[: fault.count]:
                self.history.note(f"FAULT: standby {number} dies")
                self.group.dies(number)
        else:
            self._kill_members(fault.count)

    def _phase(self, phase: str) -> None:
        self._visits[phase] += 1
        for fault in self.faults:
            if isinstance(fault, KillInPhase) and (fault.phase, fault.nth) == (phase, self._visits[phase]):
                self.clock.after(fault.delay, partial(self._kill_members, fault.count))

    def _kill_members(self, count: int) -> None:
        members = [(r, n) for r, n in self.coordinator._driver.machine.members.items() if self._lives(n)]
        for rank, number in self.random.sample(members, min(count, len(members))):
            self.history.note(f"FAULT: worker {number} (rank {rank}) dies")
            self.group.dies(number)

    def _lives(self, number: int) -> bool:
        return number in self.group.known and self.group.known[number].alive

    def _slow_down(self, fault: Slow) -> None:
        self.history.note(f"FAULT: rank {fault.rank} is {fault.factor:.0f} times slower for {fault.seconds:.1f} s")
        self._slow[fault.rank] = fault.factor
        self.clock.after(fault.seconds, partial(self._slow.update, {fault.rank: 1.0}))

    def _flip_store(self, fault: FlipStore) -> None:
        g = self.store.geometry
        offset, row_bytes = {
            "records": (g.records_offset, g.record_bytes // g.num_slots),
            "payload": (g.payload_offset, g.payload_bytes // g.num_slots),
        }[fault.part]
        place = int(fault.place * g.num_slots * row_bytes)
        if fault.live:
            slots = list(singles(self.coordinator.serving.live_slots()))
            slots = [s for s in slots if s.parity_block >= 0 and self.store.committed_slots([s]).all()]
            if not slots:
                return
            (row,) = self.store.store_rows([slots[place % len(slots)]])
            place = int(row) * row_bytes + place % row_bytes
        self.store.region.array[offset + place] ^= 0x10
        self._damaged = True
        if fault.part == "records":
            self._damaged_records = True
        else:
            self._damaged_parity += 1
        self.history.note(f"FAULT: a bit of the store's {fault.part} flips")

    def sending(self, message: msg.ToWorker) -> None:
        """The coordinator sends something: a request to rebuild is the moment to damage a survivor."""
        if not isinstance(message, msg.Rebuild) or message.epoch in self._rebuilds:
            return
        self._rebuilds.add(message.epoch)
        self._most_lost = max(self._most_lost, len(self.shard_map.lost_shards(message.lost_ranks)))
        for fault in self.faults:
            survivors = [r for r in range(self.scenario.ranks) if r not in message.lost_ranks]
            now = survivors and message.ranges
            if isinstance(fault, FlipKV) and fault.nth == len(self._rebuilds) and now:
                self._flip_kv(survivors[int(fault.place * len(survivors))], message.ranges, fault.place)

    def _flip_kv(self, rank: int, ranges: Sequence[SlotRange], place: float) -> None:
        hurt = ranges[int(place * 7919) % len(ranges)]
        data = gather(self.caches[rank], self.layout, [hurt])
        data[int(place * 104729) % len(data), int(place * 1299709) % data.shape[1]] ^= 0x04
        scatter(self.caches[rank], self.layout, [hurt], data)
        self._damaged_kv += 1
        self._damaged = True
        self.history.note(f"FAULT: a bit flips in rank {rank}, block {hurt.block}")

    # ---- what is seen from outside

    def gone(self, worker: SimulatedWorker) -> None:
        """A worker's process has ended, or was ended."""
        self._failed_starts += not worker.ready

    def _observe(self, name: str, details: dict[str, object]) -> None:
        match name:
            case "resumed" | "started":
                record = details["record"]
                assert isinstance(record, RecoveryRecord)
                self._resumed(record)
            case "wiped":
                self._check_nobody_reads()
                self.history.note(f"rank {details['rank']} is wiped")
            case "step":
                plan = details["plan"]
                assert isinstance(plan, msg.StepPlan)
                parts = ", ".join(f"{p.request_id} {p.start}+{len(p.token_ids)}" for p in plan.parts)
                again = " again" if details["replay"] else ""
                self.history.note(f"step {plan.step}{again}: {parts or 'only flushes'}; {len(plan.flush)} flushes")
            case "phase":
                self.history.note(f"epoch {details['epoch']}: {details['phase']}")
                self._phase(str(details["phase"]))
                if details["phase"] == str(Phase.REBUILDING):
                    for lost in [] if self._damaged_records else lost_commits(self.coordinator):
                        self.history.broken(lost)
            case "corrupt":
                found = details["finding"]
                assert isinstance(found, Finding)
                self._flushed_again = True
                if not self._damaged:
                    self.history.broken(f"damage is found where there is none: {found}")
                if (found.where, found.slot) in self._found:
                    self.history.broken(f"damage that was put right is found again: {found}")
                self._found.add((found.where, found.slot))
            case "spawn":
                self.history.note(f"worker {details['worker']} is started")

    def _resumed(self, record: RecoveryRecord) -> None:
        self.recoveries += 1
        self.recomputed += record.recomputed_requests
        gone = self._most_lost + self._damaged_parity + self._damaged_kv
        excused = (
            self._damaged_records
            or self._flushed_again
            or self.scenario.short_store
            or gone > self.scenario.losses_covered
        )
        if record.recomputed_requests and not excused:
            self.history.broken(
                f"{record.recomputed_requests} requests were recomputed although at most {gone} shards of a slot"
                f" were lost or damaged and parity covers {self.scenario.losses_covered}"
            )
        self._most_lost = self._damaged_kv = 0

    def _check_nobody_reads(self) -> None:
        readers = [w.number for w in self.group.known.values() if w.alive and (w.collective or w.flushing)]
        if readers:
            self.history.broken(f"memory is wiped while workers {readers} may still read it")

    def look_around(self) -> None:
        """Before the coordinator waits again: end the run when all is done and quiet, or when it takes for ever."""
        coordinator, machine = self.coordinator, self.coordinator._driver.machine
        clients = self.history.clients
        if self.clock.now > _LIMIT:
            waiting = [c.name for c in clients.values() if not (c.over or c.hung_up)]
            self.history.broken(f"no end after {_LIMIT:.0f} s: {machine.phase}, {waiting} still wait")
            coordinator.stop()
        elif len(clients) == len(self.scenario.asks) and all(c.over or c.hung_up for c in clients.values()):
            quiet = machine.phase is Phase.SERVING and coordinator._running_step is None
            if quiet and not coordinator.serving.ledger.outstanding and coordinator._inbox.empty():
                living = {number for number, worker in self.group.known.items() if worker.alive}
                for leak in leaks(coordinator, living):
                    self.history.broken(leak)
                coordinator.stop()

    def verdict(self) -> None:
        """After the run: nobody may be without an answer, and a replay must have repeated itself."""
        failure = self.coordinator.failure
        if failure is not None and not ("while starting" in str(failure) and self._failed_starts >= _MAX_FAILED_STARTS):
            self.history.broken(f"the engine failed: {failure}")
        for client in self.history.clients.values():
            if failure is None and not client.hung_up and (client.error is not None or not client.over):
                self.history.broken(f"{client.name} got {client.got} of {len(client.expected)} tokens: {client.error}")
        if self.coordinator.serving.replay_mismatches:
            self.history.broken(f"{self.coordinator.serving.replay_mismatches} replayed tokens differ")
