"""A group without processes around `Serving`: KV is a dict a rank, a token depends on all of its request's KV."""

import random
from collections import deque
from dataclasses import dataclass, field

from ghostserve.checkpoint.ledger import CheckpointLedger
from ghostserve.engine.blocks import BlockManager
from ghostserve.engine.messages import Sampled, StepPlan
from ghostserve.engine.scheduler import Request, Scheduler
from ghostserve.engine.serving import Serving
from ghostserve.parity.budget import ParityBudget
from ghostserve.parity.geometry import ShardMap
from ghostserve.recovery.planner import plan_recovery
from ghostserve.sampling import SamplingParams

POISON = -1
VOCABULARY = 50_000


@dataclass(frozen=True)
class Setup:
    ranks: int = 3
    parity: int = 2
    blocks: int = 24
    block_size: int = 4
    max_seqs: int = 6
    max_tokens: int = 12
    flush_tokens: int = 1
    max_unprotected: int = 1024
    parity_blocks: int | None = None
    encoder: str = "round_robin"
    max_lag: int = 64


def shard(rank, token, position, past):
    return hash((rank, token, position, past)) & 0xFFFFFFFF


def expected_tokens(setup, prompt, count):
    """What an undisturbed run gives: only the tokens and their order matter."""
    tokens, past = list(prompt), 0
    for position in range(len(prompt) + count - 1):
        past = hash((past, tuple(shard(r, tokens[position], position, past) for r in range(setup.ranks))))
        if position >= len(prompt) - 1:
            tokens.append(past % VOCABULARY)
    return tokens[len(prompt) :]


@dataclass
class World:
    """`seed` decides when flushes run, when their answers come, and which of both a crash takes away."""

    setup: Setup
    seed: int
    block_manager: type[BlockManager] = BlockManager
    serving_type: type[Serving] = Serving
    delivered: dict[str, list[int]] = field(default_factory=dict)
    finished: set[str] = field(default_factory=set)
    recomputed: set[str] = field(default_factory=set)
    recoveries: int = 0

    def __post_init__(self):
        s = self.setup
        self.random = random.Random(self.seed)
        blocks = self.block_manager(s.blocks, s.block_size)
        ledger = CheckpointLedger(s.ranks, s.flush_tokens, s.max_unprotected, s.encoder)
        ledger.begin(0)
        ledger.due(0)
        budget = ParityBudget(s.blocks if s.parity_blocks is None else s.parity_blocks, s.blocks) if s.parity else None
        scheduler = Scheduler(blocks, max_num_seqs=s.max_seqs, max_num_batched_tokens=s.max_tokens)
        self.serving = self.serving_type(scheduler, blocks, ledger, budget, ShardMap(s.ranks, s.ranks), s.max_lag)
        self.kv = [{} for _ in range(s.ranks)]
        self.records = {}
        self.queues = [deque() for _ in range(s.ranks)]
        self.acks = []

    def add(self, name, prompt, count):
        params = SamplingParams(temperature=0, max_tokens=count)
        self.serving.scheduler.add(Request(name, tuple(prompt), params, 0, frozenset()))
        self.delivered[name] = []

    # ---- the workers

    def execute(self, plan: StepPlan, upto=None):
        """Run the plan, or only its first parts; the tokens that rank 0 draws."""
        drawn, size = [], self.setup.block_size
        for part in plan.parts[:upto]:
            places = [(part.blocks[p // size], p % size) for p in range(part.start + len(part.token_ids))]
            past = 0
            for position, place in enumerate(places):
                if position >= part.start:
                    token = part.token_ids[position - part.start]
                    for rank, cache in enumerate(self.kv):
                        cache[place] = shard(rank, token, position, past)
                past = hash((past, tuple(cache.get(place, POISON) for cache in self.kv)))
            if part.draw is not None:
                drawn.append(Sampled(part.request_id, past % VOCABULARY, None, ()))
        return tuple(drawn)

    def flush(self, task, torn=False):
        for r in task.ranges:
            for slot in range(r.start, r.stop):
                place = (r.parity_block, slot)
                self.records.pop(place, None)
                if not torn:
                    values = tuple(cache.get((r.block, slot), POISON) for cache in self.kv)
                    self.records[place] = (r.block, r.generation, values)

    def shadow(self, eagerness):
        """Some flushes run, some answers arrive."""
        for queue in self.queues:
            while queue and self.random.random() < eagerness:
                task = queue.popleft()
                self.flush(task)
                self.acks.append(task.task_id)
        self.random.shuffle(self.acks)
        while self.acks and self.random.random() < eagerness:
            self.serving.tasks_done([self.acks.pop()])

    def submit(self, plan):
        for task in plan.flush:
            self.queues[task.encoder].append(task)

    # ---- the coordinator

    def turn(self, eagerness=0.6):
        """One step, if there is one to run; False if not."""
        plan = self.serving.next_plan()
        if plan is not None:
            drawn = self.execute(plan)
            self.submit(plan)
            self.deliver(self.serving.step_done(plan.step, drawn))
        self.shadow(eagerness)
        return plan is not None

    def crash_in_step(self, lost):
        """A rank dies while a step runs: some parts were computed, nobody answers."""
        plan = self.serving.next_plan()
        if plan is not None:
            self.execute(plan, self.random.randrange(len(plan.parts) + 1))
        self.recover(lost)

    def recover(self, lost, again=(), aborts=()):
        """Lose ranks, rebuild, replay; `again`: (replayed steps, ranks) of losses during the replay."""
        self.recoveries += 1
        self.fence()
        serving, parity = self.serving, self.setup.parity
        for rank in lost:
            self.kv[rank] = {}
        serving.roll_back(lambda r: self.count_missing([r]) == 0)
        plan = plan_recovery(
            serving.kv_states(self.count_missing),
            steps_after_watermark=serving.steps_after_watermark(),
            lost_ranks=sorted(lost),
            shard_map=serving.shard_map,
            parity=parity,
        )
        serving.pin(plan.replay)
        if plan.start_over:
            self.recomputed |= {r.request_id for r in serving.start_over()}
        else:
            self.recomputed |= {r.request_id for r in serving.recompute(list(plan.recompute))}
            self.rebuild(lost, plan.rebuild)
        for done, step in enumerate(plan.replay):
            if again and done == again[0][0]:
                self.execute(serving.replay_plan(step), 1)
                self.recover(again[0][1], again[1:], aborts)
                return
            replayed = serving.replay_plan(step)
            drawn = self.execute(replayed)
            self.submit(replayed)
            self.deliver(serving.step_done(step, drawn))
            for name in aborts:
                self.abort(name)
            self.shadow(0.5)

    def fence(self):
        """Of each encoder's flushes the first may be done or torn; the others never run, no answer arrives."""
        for queue in self.queues:
            if queue:
                match self.random.choice(["nothing", "torn", "done"]):
                    case "torn":
                        self.flush(queue[0], torn=True)
                    case "done":
                        self.flush(queue[0])
            queue.clear()
        self.acks.clear()

    def rebuild(self, lost, ranges):
        for r in ranges:
            for slot in range(r.start, r.stop):
                block, generation, values = self.records[r.parity_block, slot]
                assert (block, generation) == (r.block, r.generation)
                for rank, cache in enumerate(self.kv):
                    if rank in lost:
                        cache[r.block, slot] = values[rank]
                    else:
                        assert cache.get((r.block, slot), POISON) == values[rank], f"rank {rank} has other bytes"

    def count_missing(self, ranges):
        return sum(
            self.records.get((r.parity_block, slot), ())[:2] != (r.block, r.generation)
            for r in ranges
            for slot in range(r.start, r.stop)
        )

    def abort(self, name):
        self.serving.abort(name)
        self.delivered.pop(name, None)

    def deliver(self, accepted):
        for one in accepted:
            name = one.request.request_id
            assert name not in self.finished, "a token after the last one"
            self.delivered[name].append(one.sampled.token_id)
            if one.finish_reason is not None:
                self.finished.add(name)

    @property
    def idle(self):
        return not self.serving.scheduler.requests

    def finish(self, turns=4000):
        """Go on until every request is done, with flushes that get through; stuck is a failure."""
        for _ in range(turns):
            if self.idle:
                break
            self.turn(0.9)
        assert self.idle, "requests never finish"
        self.turn(1.0)
