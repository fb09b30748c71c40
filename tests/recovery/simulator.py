"""A group of simulated workers on a virtual clock that drives a `RecoveryMachine` through a seeded storm of faults."""

import heapq
import random
from dataclasses import dataclass, field

from ghostserve.recovery import events as ev
from ghostserve.recovery.machine import MachineSettings, Phase, RecoveryMachine

TICK = 0.25
STEP_DEADLINE = 4.0


@dataclass
class Worker:
    number: int
    ready: bool = False
    rank: int | None = None
    group: int | None = None
    """The epoch of the group that it is in; it reads its peers' memory only while in one."""
    asked: int = 0
    """The epoch of the last `Release` that it got, and of the last one that it has carried out."""
    left: int = 0
    hangs: bool = False
    loaded: bool = False


@dataclass
class Simulator:
    """`faults`: how many deaths, hangs and lost messages are spread over the first `storm` seconds."""

    seed: int
    machine_type: type[RecoveryMachine] = RecoveryMachine
    world_size: int = 3
    faults: int = 12
    storm: float = 150.0
    loss: float = 0.03
    limit: float = 3000.0
    settings: MachineSettings | None = None
    rebuilds: int = 0
    resumes: int = 0
    queue: list = field(default_factory=list)
    workers: dict = field(default_factory=dict)
    wiped: set = field(default_factory=set)

    def __post_init__(self):
        self.random = random.Random(self.seed)
        standbys = self.random.randint(0, 2)
        self.machine = self.machine_type(
            self.settings
            or MachineSettings(self.world_size, standbys, phase_deadline=20.0, probe_deadline=1.0, max_attempts=12)
        )
        self.now, self.numbers, self.count = 0.0, 0, 0
        self.valid = set()  # the ranks whose memory holds the KV
        self.served_once = False
        self.step, self.running = 0, None
        self.to_replay = 0

    # ---- the clock

    def later(self, delay, action, *arguments):
        self.count += 1
        heapq.heappush(self.queue, (self.now + delay, self.count, action, arguments))

    def answer(self, worker, event, low=0.01, high=1.0):
        """A worker's message: delayed, sometimes lost, and none from a dead or hanging one."""
        if self.random.random() < 0.1:
            high *= 10  # long enough to arrive in another epoch
        if self.random.random() >= self.loss:
            self.later(self.random.uniform(low, high), self.arrive, worker, event)

    def arrive(self, worker, event):
        if self.lives(worker):
            worker.ready |= isinstance(event, ev.WorkerReady)
            worker.loaded |= isinstance(event, ev.Loaded)
            self.tell(event)

    def lives(self, worker):
        return worker.number in self.workers and not worker.hangs

    def run(self):
        for _ in range(self.random.randint(0, self.faults)):
            self.later(self.random.uniform(0, self.storm), self.strike)
        self.carry_out(self.machine.start(0.0))
        self.later(TICK, self.tick)
        while self.machine.phase is not Phase.FAILED:
            assert self.now < self.limit, f"stuck in {self.machine.phase}"
            self.now, _, action, arguments = heapq.heappop(self.queue)
            action(*arguments)
            hanging = any(w.hangs for w in self.workers.values() if w.rank is not None)
            if self.now > self.storm and self.machine.phase is Phase.SERVING and not (self.running or hanging):
                break
        return self.machine.phase

    def tick(self):
        if self.running is not None and self.now > self.running[1] and self.machine.phase is not Phase.PROBING:
            self.tell(ev.StepOverdue(self.step))
        self.tell(ev.Tick())
        if self.machine.phase is Phase.SERVING and self.running is None:
            self.begin_step()
        self.later(TICK, self.tick)

    # ---- faults

    def strike(self):
        living = list(self.workers.values())
        if not living:
            return
        for worker in self.random.sample(living, min(len(living), self.random.choice([1, 1, 1, 2]))):
            kind = self.random.choice(["die", "die", "hang", "raise", "break"])
            if kind == "hang":
                worker.hangs = True
            elif kind == "break" and worker.group is not None:
                self.answer(worker, ev.CommunicatorBroke(worker.number, worker.group, "reset"), 0, 0.1)
            elif kind == "raise":
                self.later(0.05, self.arrive, worker, ev.WorkerLost(worker.number, "raised"))
            else:
                self.end(worker)
                self.later(0.02, self.tell, ev.WorkerLost(worker.number, "killed"))  # the pidfd never fails
                for peer in self.workers.values():
                    if peer.group is not None and peer.group == worker.group and self.random.random() < 0.5:
                        self.answer(peer, ev.CommunicatorBroke(peer.number, peer.group, "peer closed"), 0, 0.1)

    def end(self, worker):
        self.workers.pop(worker.number, None)
        if worker.rank is not None:  # its memory goes with it
            self.valid.discard(worker.rank)
            self.wiped.discard(worker.rank)

    # ---- the machine

    def tell(self, event):
        epoch = self.machine.epoch
        commands = self.machine.handle(event, self.now)
        if self.machine.epoch != epoch:
            self.running = None
        self.carry_out(commands)

    def carry_out(self, commands):
        for command in commands:
            self.obey(command)

    def obey(self, command):
        match command:
            case ev.Kill(number):
                if number in self.workers:
                    self.end(self.workers[number])
            case ev.Spawn():
                worker = Worker(self.numbers)
                self.numbers += 1
                self.workers[worker.number] = worker
                self.machine.spawned(worker.number)
                if self.random.random() < 0.04:
                    self.later(0.5, self.fail_to_start, worker)
                self.answer(worker, ev.WorkerReady(worker.number), 0.5, 5.0)
            case ev.Load(number, rank):
                self.with_worker(number, self.load, rank)
            case ev.Release(number, epoch):
                self.with_worker(number, self.release, epoch)
            case ev.Wipe(rank):
                readers = [w.number for w in self.workers.values() if w.group is not None]
                assert not readers, f"rank {rank} is wiped while {readers} may read it"
                assert rank not in self.valid, f"rank {rank} is wiped although its KV is whole"
                self.wiped.add(rank)
            case ev.Join(epoch, members):
                assert len(set(members)) == self.world_size, "a worker holds two ranks"
                for number in members:
                    self.with_worker(number, self.join, epoch)
            case ev.Rebuild(epoch, lost, targets):
                self.rebuild(epoch, lost, targets)
            case ev.Replay(epoch):
                self.to_replay = self.random.randint(0, 3)
                self.replay_next(epoch)
            case ev.Resume():
                self.resume(command)
            case ev.Probe(number):
                self.with_worker(number, self.probed)
            case ev.GiveUp():
                assert self.machine.phase is Phase.FAILED

    def with_worker(self, number, action, *arguments):
        worker = self.workers.get(number)
        if worker is not None and self.lives(worker):
            action(worker, *arguments)

    def fail_to_start(self, worker):
        if worker.number in self.workers and not worker.ready:
            self.end(worker)
            self.tell(ev.WorkerLost(worker.number, "import failed"))

    def load(self, worker, rank):
        assert worker.rank is None, "a worker takes one rank in its life"
        worker.rank = rank
        self.answer(worker, ev.Loaded(worker.number, rank), 0.5, 3.0)

    def release(self, worker, epoch):
        worker.asked = epoch

        def leave():
            if self.lives(worker) and epoch > worker.left:  # in the order of the messages
                worker.group, worker.left = None, epoch
                self.answer(worker, ev.Released(worker.number, epoch), 0.01, 2.0)

        self.later(self.random.uniform(0.01, 3.0), leave)

    def join(self, worker, epoch):
        assert worker.loaded, "a worker joins without weights"
        assert worker.group is None, "a worker joins that is still in a group"
        assert worker.left == worker.asked, "a worker joins that has not carried out its release"

        def enter():
            if self.lives(worker) and worker.asked <= epoch:
                worker.group = epoch
                self.answer(worker, ev.Joined(worker.number, epoch))

        self.later(self.random.uniform(0.05, 4.0), enter)

    def rebuild(self, epoch, lost, targets):
        # A member that died a moment ago is not known to be lost yet: the machine will hear of it and start again.
        known = {rank for rank, number in self.machine.members.items() if number in self.workers}
        truly = known - self.valid
        assert set(lost) >= truly, f"ranks {truly} have no KV, only {lost} are rebuilt"
        assert set(lost) & known <= self.wiped, f"ranks {lost} are rebuilt, only {self.wiped} are wiped"
        for rank in known:
            assert self.workers[self.machine.members[rank]].group == epoch, f"rank {rank} has not joined"
        self.rebuilds += 1
        for number, rank in targets:
            self.with_worker(number, self.refill, rank, epoch)

    def refill(self, worker, rank, epoch):
        def done():
            if self.lives(worker) and worker.group == epoch:
                self.valid.add(rank)
                self.answer(worker, ev.Rebuilt(worker.number, epoch), 0, 0.5)

        assert worker.rank == rank
        self.later(self.random.uniform(0.1, 1.0), done)

    def check_whole(self):
        members = self.machine.members
        assert sorted(members) == list(range(self.world_size))
        assert len(set(members.values())) == self.world_size, "a worker holds two ranks"
        for rank, number in members.items():
            worker = self.workers.get(number)  # None: died a moment ago, the machine will hear of it
            if worker is not None:
                assert worker.rank == rank
                assert worker.group == self.machine.epoch, f"rank {rank} is not in the group"
                assert not self.served_once or rank in self.valid, f"rank {rank} serves without its KV"

    def replay_next(self, epoch):
        if epoch != self.machine.epoch:
            return
        self.check_whole()
        if self.to_replay == 0:
            self.running = None
            self.tell(ev.Replayed(epoch))
        else:
            self.to_replay -= 1
            self.begin_step()

    def resume(self, command):
        self.check_whole()
        assert command.epoch == self.machine.epoch
        times = [at for _, at in command.timeline.marks]
        assert times == sorted(times), "the timeline goes back"
        self.resumes += 1
        self.valid = {r for r, n in self.machine.members.items() if n in self.workers}
        self.wiped.clear()
        self.served_once = True

    # ---- steps

    def begin_step(self):
        self.step += 1
        self.running = (self.step, self.now + STEP_DEADLINE)
        members = [self.workers.get(n) for n in self.machine.members.values()]
        if all(w is not None and not w.hangs for w in members):
            # Like a message: an answer can be lost, and must be of the present epoch.
            self.later(self.random.uniform(0.05, 0.3), self.step_done, self.step, self.machine.epoch, members)

    def step_done(self, step, epoch, members):
        gone = not all(map(self.lives, members))
        if gone or epoch != self.machine.epoch or self.running is None or self.running[0] != step:
            return
        if self.random.random() < self.loss / 3:
            return
        self.running = None
        self.machine.step_finished()
        if self.machine.phase is Phase.REPLAYING:
            self.replay_next(epoch)

    def probed(self, worker):
        stuck = any(n not in self.workers or self.workers[n].hangs for n in self.machine.members.values())
        self.answer(worker, ev.Probed(worker.number, stuck or self.random.random() < 0.9), 0.01, 0.3)
