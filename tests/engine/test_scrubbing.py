"""What is scrubbed when, and what counts as a finding, against a group whose slots change at any moment."""

import random
from itertools import pairwise

import pytest
from serving_world import Setup, World

from ghostserve.engine.messages import Scrubbed
from ghostserve.engine.scrubbing import PERIOD, Scrubbing
from ghostserve.parity.ranges import num_slots, singles
from ghostserve.parity.reader import Fault

SLOT_BYTES = 100


class ScrubbedWorld(World):
    """A worker reads at any time after it was asked, its answer comes at any time after that; a fence drops both."""

    scrubbing_type = Scrubbing
    rate = 10**9

    def __post_init__(self):
        super().__post_init__()
        self.now, self.epoch = 0.0, 1
        self.asked = self.answer = None
        self.findings = []
        self.sent = []
        self.scrubbing = self.scrubbing_type(
            self.serving,
            rate=self.rate,
            slot_bytes=SLOT_BYTES,
            num_ranks=self.setup.ranks,
            is_committed=lambda slot: self.count_missing([slot]) == 0,
        )

    def submit(self, plan):
        self.scrubbing.flushing(plan.flush)
        super().submit(plan)

    def fence(self):
        super().fence()
        self.epoch += 1
        self.asked = self.answer = None

    def turn(self, eagerness=0.6):
        ran = super().turn(eagerness)
        self.now += PERIOD
        wanted = self.scrubbing.next(self.epoch, self.now)
        if wanted is not None:
            self.sent.append(wanted)
            self.asked = wanted[1]
        if self.asked is not None and self.random.random() < eagerness:
            self.asked, self.answer = None, self.read(self.asked)
        if self.answer is not None and self.random.random() < eagerness:
            answer, self.answer = self.answer, None
            self.findings += self.hear(answer)
        return ran

    def read(self, scrub):
        faults, absent, slots = [], [], 0
        for slot in singles(scrub.ranges):
            record = self.records.get((slot.parity_block, slot.start), ())
            if record[:2] != (slot.block, slot.generation):
                absent.append(slot)
                continue
            slots += 1
            for rank, cache in enumerate(self.kv):
                if cache.get((slot.block, slot.start)) != record[2][rank]:
                    faults.append(Fault(rank, rank, slot))
        return Scrubbed(scrub.epoch, scrub.number, slots, slots * SLOT_BYTES, tuple(faults), 0, tuple(absent))

    def hear(self, answer):
        findings = self.scrubbing.heard(answer)
        rotten = {f.request_id for f in findings if f.live}
        for found in findings:
            if found.request_id not in rotten:
                self.serving.flush_again(found.request_id, [found.slot])
        self.serving.recompute(rotten)
        return findings


def storm(seed, worlds=ScrubbedWorld):
    """Random requests, crashes and aborts, in a cache and a store too small for all of them."""
    rng = random.Random(seed)
    setup = Setup(
        blocks=rng.randint(9, 24), parity_blocks=rng.choice([None, 6]), encoder=rng.choice(["striped", "round_robin"])
    )
    world = worlds(setup, seed)
    for i in range(10):
        world.add(f"r{i}", [rng.randrange(1000) for _ in range(rng.randint(1, 16))], rng.randint(1, 12))
    for _ in range(60):
        if rng.random() < 0.06:
            world.recover(rng.sample(range(setup.ranks), rng.randint(0, setup.parity)))
        elif rng.random() < 0.05 and world.serving.scheduler.requests:
            world.abort(rng.choice(sorted(world.serving.scheduler.requests)))
        else:
            world.turn(rng.choice([0.2, 0.6, 1.0]))
    world.finish()
    return world


@pytest.mark.parametrize("seed", range(40))
def test_nothing_is_found_where_nothing_is_wrong(seed):
    world = storm(seed)
    assert world.findings == []
    assert world.scrubbing.counts["scrubbed_slots"] > 20


class Believing(Scrubbing):
    """The twin: whose the slots are by now is not asked."""

    def heard(self, report):
        owner = self._serving.owner
        someone = next(iter(self._serving.scheduler.requests.values()), None)
        self._serving.owner = lambda slot: someone
        try:
            return super().heard(report)
        finally:
            self._serving.owner = owner


class EverythingWritten(Scrubbing):
    """The twin: what is written counts as committed."""

    def _take(self, slots):
        ledger = type(self._serving.ledger)
        mine, ledger.open_slots = ledger.open_slots, ()
        try:
            return super()._take(slots)
        finally:
            ledger.open_slots = mine


@pytest.mark.parametrize("twin", [Believing, EverythingWritten])
def test_a_twin_finds_what_is_not_there(twin):
    worlds = type("Twin", (ScrubbedWorld,), {"scrubbing_type": twin})
    assert any(storm(seed, worlds).findings for seed in range(40))


def busy_world(seed=1, prompt=14, **settings):
    world = type("Busy", (ScrubbedWorld,), settings)(Setup(blocks=40), seed)
    for i in range(3):
        world.add(f"r{i}", [7 * i + j for j in range(prompt)], 400)
    for _ in range(8):
        world.turn(1.0)
    return world


@pytest.mark.parametrize("kind", ["kv", "record"])
@pytest.mark.parametrize("seed", range(10))
def test_damage_is_found_within_two_passes_and_put_right(kind, seed):
    world = busy_world(seed)
    victim = world.random.choice(world.serving.scheduler.running)
    slot = world.random.choice(list(singles(world.serving.committed(victim, 0, victim.num_computed))))
    if kind == "kv":
        world.kv[2][slot.block, slot.start] ^= 1
    else:
        del world.records[slot.parity_block, slot.start]
    passes = world.scrubbing.counts["scrub_passes"]
    while not world.findings:
        world.turn(1.0)
        assert world.scrubbing.counts["scrub_passes"] - passes <= 2
    (found,) = world.findings
    expected = ("rank 2", True) if kind == "kv" else ("record", False)
    assert (found.where, found.live, found.slot, found.request_id) == (*expected, slot, victim.request_id)
    for _ in range(4):
        world.turn(1.0)
    assert len(world.findings) == 1, "found once"
    assert world.scrubbing.counts["scrub_corrupt_slots"] == 1
    if kind == "kv":
        assert world.serving.owner(slot) is None, "other blocks have taken its place"
        assert victim.recomputed == 1
    else:
        assert world.count_missing([slot]) == 0


def test_the_rate_is_kept_and_ranks_take_turns():
    world = busy_world(rate=4 * SLOT_BYTES)
    world.sent.clear()
    begun = world.now
    while world.now < begun + 30:
        world.turn(1.0)
    slots = [num_slots(scrub.ranges) for _, scrub in world.sent]
    assert 100 < sum(slots) <= 4 * 30 + 4
    assert max(slots) <= 4
    ranks = [rank for rank, _ in world.sent]
    assert all(b == (a + 1) % 3 for a, b in pairwise(ranks))


def test_every_committed_slot_has_its_turn_in_a_pass():
    world = busy_world(rate=8 * SLOT_BYTES)
    world.serving.next_plan = lambda: None  # nothing is written any more
    world.sent.clear()
    all_of_them = {
        s for r in world.serving.scheduler.running for s in singles(world.serving.committed(r, 0, r.num_computed))
    }
    passes = world.scrubbing.counts["scrub_passes"]
    while world.scrubbing.counts["scrub_passes"] < passes + 3:
        world.turn(1.0)
    read = [s for _, scrub in world.sent for s in singles(scrub.ranges)]
    assert set(read) == all_of_them
    assert len(read) <= 4 * len(all_of_them), "and none has it twice"


def test_without_a_rate_nothing_is_asked_nor_counted():
    world = busy_world(rate=0)
    assert world.sent == []
    assert world.scrubbing.counts == {}


def asked(world):
    """The next request to a worker, unanswered."""
    world.asked = world.answer = None
    while True:
        world.now += PERIOD
        wanted = world.scrubbing.next(world.epoch, world.now)
        if wanted is not None:
            return wanted[1]
        world.epoch += 1


def test_a_slot_that_is_flushed_meanwhile_is_no_finding():
    """Its record is not there while it is written."""
    world = busy_world()
    scrub = asked(world)
    slot = next(singles(scrub.ranges))
    del world.records[slot.parity_block, slot.start]
    report = world.read(scrub)
    owner = world.serving.owner(slot)
    world.serving.flush_again(owner.request_id, [slot])
    plan = world.serving.next_plan()
    assert any(slot.block == r.block for task in plan.flush for r in task.ranges)
    world.scrubbing.flushing(plan.flush)
    assert world.scrubbing.heard(report) == []
    assert world.scrubbing.counts["scrub_withdrawn_slots"] == 1


def test_what_the_disk_refused_is_no_finding():
    world = busy_world()
    plan = world.serving.next_plan()
    (task,) = plan.flush
    world.scrubbing.refused(task)
    world.serving.step_done(plan.step, world.execute(plan))
    world.serving.tasks_done([task.task_id])  # nothing was written
    for _ in range(12):
        world.turn(1.0)
    assert world.findings == []
    assert world.count_missing(task.ranges) > 0


def test_an_answer_to_another_question_is_no_answer():
    world = busy_world()
    scrub = asked(world)
    world.kv[0].clear()
    report = world.read(scrub)
    late = Scrubbed(scrub.epoch, scrub.number - 1, report.slots, 0, report.faults, 0, ())
    assert world.scrubbing.heard(late) == []
    assert world.scrubbing.heard(report)
    assert world.scrubbing.heard(report) == [], "and one counts once"
