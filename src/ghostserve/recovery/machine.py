"""The coordinator's side of recovery as a state machine without I/O.

Events go in with the time at which they happened, commands come out; a driver turns commands into processes and
messages. Starting the engine is the same thing as recovering from the loss of every rank, with nothing to rebuild.

    releasing --> rejoining --> rebuilding --> replaying --> serving
        ^             |             |              |            |
        +-------------+-------------+--------------+------------+   any loss: a new epoch, more ranks lost

While survivors are being released, newcomers load their weights: the two go side by side.
"""

import enum
from dataclasses import dataclass

from ghostserve.recovery import events as ev

__all__ = ["MachineSettings", "Phase", "RecoveryMachine"]


class Phase(enum.StrEnum):
    """Where the machine stands."""

    SERVING = "serving"
    PROBING = "probing"
    RELEASING = "releasing"
    REJOINING = "rejoining"
    REBUILDING = "rebuilding"
    REPLAYING = "replaying"
    FAILED = "failed"


@dataclass(frozen=True)
class MachineSettings:
    """`world_size` ranks, `standbys` spare workers; deadlines in seconds.

    `max_attempts` bounds the recoveries in a row without a finished step, `max_failed_spawns` the workers in a row that
    die before they are ready.
    """

    world_size: int
    standbys: int = 1
    phase_deadline: float = 120.0
    probe_deadline: float = 1.0
    max_attempts: int = 8
    max_failed_spawns: int = 3
    spawn_retry: float = 10.0
    """Seconds until standbys are started again after so many have failed."""


class RecoveryMachine:
    """Who holds which rank, in which epoch, and what comes next."""

    def __init__(self, settings: MachineSettings) -> None:
        self.settings = settings
        self.phase = Phase.RELEASING
        self.epoch = 1
        self.members: dict[int, int] = {}
        """rank -> worker; a rank without one waits for a newcomer."""
        self.standbys: list[int] = []
        self.starting: set[int] = set()
        self.lost_ranks: set[int] = set()
        """Ranks whose KV is gone and not yet rebuilt."""
        self.timeline: ev.Timeline | None = None
        self.deadline: float | None = None
        self._loaded: set[int] = set()
        self._released: set[int] = set()
        self._answered: set[int] = set()
        self._wiped: set[int] = set()
        self._marked: set[str] = set()
        self._fresh = True
        self._probed_from = Phase.SERVING
        self._overdue = 0
        self._spared = -1
        self._busy: set[int] = set()
        self._attempts = 0
        self._step_open = False
        self._retry_at: float | None = None
        self._failed_spawns = 0
        self._spawning = 0

    # ---- the driver's calls

    def start(self, now: float) -> list[ev.Command]:
        """Bring up the first group; `standbys` follow when it serves."""
        self.timeline = ev.Timeline(now, "start", tuple(range(self.settings.world_size)))
        self.deadline = now + self.settings.phase_deadline
        return self._spawn(self.settings.world_size, cold=True)

    def spawned(self, worker: int) -> None:
        """The driver has carried out a `Spawn`: this is the new process's number."""
        self._spawning -= 1
        self.starting.add(worker)

    def step_sent(self) -> None:
        """A new step is under way. A loss without one is no failed attempt: an idle engine may lose any number."""
        self._step_open = True

    def step_finished(self) -> None:
        """A step was answered: a probe is pointless, and if it was a new one, earlier attempts are forgotten.

        A replayed step proves nothing: one further on may be what kills the workers each time.
        """
        if self.phase is Phase.PROBING:
            self.phase, self.deadline = self._probed_from, None
        if self.phase is Phase.SERVING:
            self._attempts = 0
            self._step_open = False

    def handle(self, event: ev.Event, now: float) -> list[ev.Command]:
        """What to do about `event`. Events of older epochs and of forgotten workers change nothing."""
        if self.phase is Phase.FAILED:
            return []
        match event:
            case ev.WorkerReady(worker):
                return self._ready(worker, now)
            case ev.WorkerLost(worker, reason):
                return self._lost(worker, reason, now)
            case ev.CommunicatorBroke(worker, epoch, reason):
                return self._broke(worker, epoch, reason, now)
            case ev.StepOverdue(step):
                return self._probe(step, now)
            case ev.Probed(worker, waiting):
                if self.phase is Phase.PROBING:
                    (self._answered if waiting else self._busy).add(worker)
                return []
            case ev.Released(worker, epoch):
                if epoch == self.epoch and self.phase is Phase.RELEASING:
                    self._released.add(worker)
                return self._advance(now)
            case ev.Loaded(worker, rank):
                if self.members.get(rank) == worker:
                    self._loaded.add(worker)
                return self._advance(now)
            case ev.Joined(worker, epoch) | ev.Rebuilt(worker, epoch):
                wanted = Phase.REJOINING if isinstance(event, ev.Joined) else Phase.REBUILDING
                if epoch == self.epoch and self.phase is wanted:
                    self._answered.add(worker)
                return self._advance(now)
            case ev.Replayed(epoch):
                return self._resume(now) if epoch == self.epoch and self.phase is Phase.REPLAYING else []
            case ev.Tick():
                return self._tick(now)

    # ---- losses

    def _lost(self, worker: int, reason: str, now: float) -> list[ev.Command]:
        kill: list[ev.Command] = [ev.Kill(worker, reason)]
        if worker in self.standbys:
            self.standbys.remove(worker)
            return kill + self._refill()
        if worker in self.starting:
            self.starting.discard(worker)
            self._failed_spawns += 1
            if self._failed_spawns < self.settings.max_failed_spawns:
                return kill + self._refill()
            if self._vacant():
                return kill + self._give_up(f"{self._failed_spawns} workers in a row died while starting: {reason}")
            self._retry_at = now + self.settings.spawn_retry
            return kill
        rank = next((r for r, w in self.members.items() if w == worker), None)
        if rank is None:
            return []
        return kill + self._begin(f"rank {rank}: {reason}", (rank,), now)

    def _broke(self, worker: int, epoch: int, reason: str, now: float) -> list[ev.Command]:
        if epoch != self.epoch or worker not in self.members.values() or self.phase is Phase.RELEASING:
            return []
        return self._begin(f"communicator: {reason}", (), now)

    def _probe(self, step: int, now: float) -> list[ev.Command]:
        if self.phase not in (Phase.SERVING, Phase.REPLAYING):
            return []
        self._probed_from = self.phase
        self.phase = Phase.PROBING
        self._answered, self._busy = set(), set()
        self.deadline = now + self.settings.probe_deadline
        self._overdue = step
        return [ev.Probe(worker) for worker in self.members.values()]

    def _begin(self, reason: str, ranks: tuple[int, ...], now: float) -> list[ev.Command]:
        """Fence: a new epoch. Everyone who is left leaves the group; lost ranks get new workers."""
        self.epoch += 1
        if self.phase is Phase.SERVING and not self._step_open:
            self._attempts = 0
        self._attempts += 1
        if self._attempts > self.settings.max_attempts:
            return self._give_up(f"{self._attempts - 1} recoveries in a row without a finished step; last: {reason}")
        if self.timeline is None:
            self.timeline = ev.Timeline(now, reason)
        else:
            self.timeline.reason += f"; then {reason}"
        for rank in ranks:
            self._loaded.discard(self.members.pop(rank))
            self._wiped.discard(rank)
        if not self._fresh:
            self.lost_ranks.update(ranks)
        self.timeline.lost_ranks = tuple(sorted({*self.timeline.lost_ranks, *ranks}))
        self.timeline.mark("detected", now)
        self._marked = set()
        self.phase = Phase.RELEASING
        self.deadline = now + self.settings.phase_deadline
        self._released = set()
        self._answered = set()
        commands: list[ev.Command] = [ev.Release(worker, self.epoch) for worker in self.members.values()]
        return commands + self._fill(now) + self._advance(now)

    # ---- progress

    def _ready(self, worker: int, now: float) -> list[ev.Command]:
        if worker not in self.starting:
            return []
        self.starting.discard(worker)
        self._failed_spawns = 0
        self.standbys.append(worker)
        return self._fill(now) if self._vacant() else []

    def _fill(self, now: float) -> list[ev.Command]:
        """Give vacant ranks to standbys; start workers for those that are left over."""
        commands: list[ev.Command] = []
        for rank in self._vacant():
            if not self.standbys:
                break
            worker = self.standbys.pop(0)
            self.members[rank] = worker
            self._released.add(worker)  # it was in no group
            commands.append(ev.Load(worker, rank))
        if commands:
            self.deadline = now + self.settings.phase_deadline  # loading has its own time, starting took the rest
            if not self._vacant():
                self._mark("spawned", now)
        missing = len(self._vacant()) - len(self.starting) - self._spawning
        return commands + self._spawn(missing, cold=True)

    def _advance(self, now: float) -> list[ev.Command]:
        """Go on to the next phase where everyone has answered."""
        everyone = set(self.members.values())
        whole = len(everyone) == self.settings.world_size
        commands: list[ev.Command] = []
        if self.phase is Phase.RELEASING and everyone <= self._released:
            # Only now nobody reads a lost rank's memory any more.
            fresh = sorted(self.lost_ranks - self._wiped)
            if fresh:
                self._wiped.update(fresh)
                commands += [ev.Wipe(rank) for rank in fresh]
            self._mark("released", now)
            if whole and everyone <= self._loaded:
                self._mark("weights", now)
                members = tuple(self.members[rank] for rank in sorted(self.members))
                return [*commands, *self._enter(Phase.REJOINING, now), ev.Join(self.epoch, members)]
        elif self.phase is Phase.REJOINING and everyone <= self._answered:
            self._mark("rejoined", now)
            commands += self._enter(Phase.REBUILDING, now)
            targets = tuple((self.members[rank], rank) for rank in sorted(self.lost_ranks))
            if targets:
                return [*commands, ev.Rebuild(self.epoch, tuple(sorted(self.lost_ranks)), targets)]
            return commands + self._replay(now)
        elif self.phase is Phase.REBUILDING and {self.members[r] for r in self.lost_ranks} <= self._answered:
            return self._replay(now)
        return commands

    def _replay(self, now: float) -> list[ev.Command]:
        self._mark("rebuilt", now)
        self.lost_ranks.clear()
        self._wiped.clear()
        return [*self._enter(Phase.REPLAYING, now), ev.Replay(self.epoch)]

    def _resume(self, now: float) -> list[ev.Command]:
        assert self.timeline is not None
        self._mark("replayed", now)
        self._mark("resumed", now)
        timeline, self.timeline = self.timeline, None
        self.phase, self.deadline, self._fresh = Phase.SERVING, None, False
        self._step_open = False
        return [ev.Resume(self.epoch, timeline), *self._refill()]

    def _enter(self, phase: Phase, now: float) -> list[ev.Command]:
        self.phase = phase
        self._answered = set()
        # A replay runs steps, and each step has a deadline of its own.
        self.deadline = None if phase is Phase.REPLAYING else now + self.settings.phase_deadline
        return []

    # ---- time

    def _tick(self, now: float) -> list[ev.Command]:
        if self.phase is Phase.SERVING and self._retry_at is not None and now >= self._retry_at:
            self._retry_at, self._failed_spawns = None, 0
            return self._refill()
        if self.deadline is None or now < self.deadline:
            return []
        if self.phase is Phase.PROBING:
            return self._judge(now)
        late = self._late()
        if not late:
            self.deadline = now + self.settings.phase_deadline
            commands: list[ev.Command] = []
            for worker in sorted(self.starting) if self._vacant() else ():
                if self.phase is not Phase.FAILED:
                    commands += self._lost(worker, "not ready in time", now)
            return commands
        return self._lose_all(late, f"no answer while {self.phase}", now)

    def _judge(self, now: float) -> list[ev.Command]:
        """Who waits is a victim. Who does not answer is the culprit; if all do, it is who is busy with something else.

        If all are busy the step may just be slow: it gets its deadline once more.
        """
        everyone = set(self.members.values())
        silent = everyone - self._answered - self._busy
        culprits = silent or everyone - self._answered
        self.phase = self._probed_from
        if self._busy >= everyone and self._spared != self._overdue:
            self._spared, self.deadline = self._overdue, None
            return []
        if culprits:
            return self._lose_all(culprits, f"hangs in step {self._overdue}", now)
        return self._begin(f"step {self._overdue} is overdue and every rank waits", (), now)

    def _late(self) -> set[int]:
        everyone = set(self.members.values())
        match self.phase:
            case Phase.RELEASING:
                return (everyone - self._released) | (everyone - self._loaded)
            case Phase.REJOINING:
                return everyone - self._answered
            case Phase.REBUILDING:
                return {self.members[rank] for rank in self.lost_ranks} - self._answered
            case _:
                return set()

    def _lose_all(self, workers: set[int], reason: str, now: float) -> list[ev.Command]:
        ranks = tuple(sorted(rank for rank, worker in self.members.items() if worker in workers))
        kills: list[ev.Command] = [ev.Kill(worker, reason) for worker in sorted(workers)]
        names = ", ".join(f"rank {rank}" for rank in ranks)
        return kills + self._begin(f"{names}: {reason}", ranks, now)

    # ---- small things

    def _vacant(self) -> list[int]:
        return [rank for rank in range(self.settings.world_size) if rank not in self.members]

    def _refill(self) -> list[ev.Command]:
        """Keep the standbys' number up, and start what vacant ranks wait for."""
        vacant = len(self._vacant())
        up = Phase.SERVING in (self.phase, self._probed_from if self.phase is Phase.PROBING else None)
        wanted = vacant + (self.settings.standbys if up else 0)
        if self._failed_spawns >= self.settings.max_failed_spawns:
            return []
        return self._spawn(wanted - len(self.standbys) - len(self.starting) - self._spawning, cold=vacant > 0)

    def _spawn(self, count: int, *, cold: bool) -> list[ev.Command]:
        count = max(0, count)
        self._spawning += count
        return [ev.Spawn(cold)] * count

    def _mark(self, phase: str, now: float) -> None:
        """Note when the present epoch first got this far; what an earlier epoch noted is overwritten."""
        if self.timeline is not None and phase not in self._marked:
            self._marked.add(phase)
            self.timeline.marks = [mark for mark in self.timeline.marks if mark[0] != phase]
            self.timeline.mark(phase, now)

    def _give_up(self, reason: str) -> list[ev.Command]:
        self.phase, self.deadline = Phase.FAILED, None
        return [ev.GiveUp(reason)]
