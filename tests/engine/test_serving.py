"""`Serving` against a group that loses KV, flushes and answers at any moment: the tokens must not change."""

import random

import pytest
from serving_world import Setup, World, expected_tokens

from ghostserve.checkpoint.tasks import FlushTask
from ghostserve.engine.blocks import BlockManager
from ghostserve.engine.messages import Sampled
from ghostserve.engine.serving import Serving


class RestlessBlocks(BlockManager):
    """Sabotage: a freed block is free at once."""

    def free(self, blocks, last_step):
        self._free.extend(blocks)


class ForgetfulServing(Serving):
    """Sabotage: the step log is cut at the watermark also while a recovery has to run those steps again."""

    def pin(self, steps):
        pass


class SameGeneration(BlockManager):
    """Sabotage: a block's reuse does not show in its generation, and it does not rest."""

    def free(self, blocks, last_step):
        self._free.extend(blocks)

    def generation(self, block):
        return 1


def requests_of(rng, setup, count):
    limit = setup.blocks * setup.block_size - 1
    for i in range(count):
        output = rng.randint(1, 12)
        prompt = [rng.randrange(1000) for _ in range(rng.randint(1, min(30, limit - output)))]
        yield f"r{i}", prompt, output


def storm(setup, seed, count=8, worlds=World, **parts):
    """Random requests, crashes and aborts; compares every token with the undisturbed run's."""
    rng = random.Random(seed)
    world = worlds(setup, seed, **parts)
    asked = {}
    for name, prompt, output in requests_of(rng, setup, count):
        world.add(name, prompt, output)
        asked[name] = (prompt, output)
    eagerness = rng.choice([0.1, 0.4, 0.9])
    for _ in range(rng.randint(5, 80)):
        dice = rng.random()
        lost = rng.sample(range(setup.ranks), rng.randint(0, min(setup.parity, setup.ranks)))
        names = sorted(asked)
        if dice < 0.08:
            world.crash_in_step(lost)
        elif dice < 0.2:
            again = [
                (rng.randint(0, 3), rng.sample(range(setup.ranks), rng.randint(0, setup.parity)))
                for _ in range(rng.randint(0, 2))
            ]
            aborted = [name for name in names if rng.random() < 0.1]
            world.recover(lost, again, aborted)
            for name in aborted:
                asked.pop(name) if name not in world.delivered else None
        elif dice < 0.23 and names:
            name = rng.choice(names)
            world.abort(name)
            asked.pop(name)
        else:
            world.turn(eagerness)
    world.finish()
    for name, (prompt, output) in asked.items():
        assert world.delivered[name] == expected_tokens(setup, prompt, output), name
    assert world.serving.replay_mismatches == 0
    assert world.serving.blocks.usage == 0, "blocks were lost"
    assert not world.serving.log
    return world


SETUPS = [
    *(Setup(flush_tokens=n) for n in range(1, 6)),
    Setup(flush_tokens=3, blocks=11),
    Setup(flush_tokens=5, blocks=14, block_size=3, encoder="striped"),
    Setup(flush_tokens=4, max_tokens=6, parity=1, max_unprotected=5),
    Setup(flush_tokens=5, max_lag=6),
    Setup(flush_tokens=100, blocks=11, max_lag=20),
]


@pytest.mark.parametrize("setup", SETUPS, ids=str)
def test_tokens_are_those_of_an_undisturbed_run_and_nothing_is_recomputed(setup):
    recoveries = preemptions = 0
    for seed in range(25):
        world = storm(setup, seed)
        assert not world.recomputed, "parity covered everything"
        recoveries += world.recoveries
        preemptions += world.serving.preemptions
    assert recoveries > 50
    if setup.blocks < 15:
        assert preemptions > 0, "memory was never short: the case tests nothing"


@pytest.mark.parametrize("setup", [Setup(parity_blocks=5), Setup(parity_blocks=9, flush_tokens=4, blocks=16)], ids=str)
def test_too_small_a_budget_costs_recomputation_and_never_a_wrong_token(setup):
    recomputed = sum(len(storm(setup, seed).recomputed) for seed in range(40))
    assert recomputed > 0, "the budget was never too small: the case tests nothing"


@pytest.mark.parametrize("parity", [0, 1])
def test_more_losses_than_parity_are_recomputed(parity):
    setup = Setup(parity=parity)
    world = World(setup, 1)
    world.add("a", range(20), 8)
    world.add("b", range(50, 53), 12)
    for _ in range(6):
        world.turn()
    world.crash_in_step([0, 2])
    world.finish()
    assert world.recomputed == {"a", "b"}
    assert world.delivered["a"] == expected_tokens(setup, range(20), 8)
    assert world.delivered["b"] == expected_tokens(setup, range(50, 53), 12)


def failures(setup, seeds=60, **parts):
    failed = 0
    for seed in range(seeds):
        try:
            assert not storm(setup, seed, **parts).recomputed
        except (AssertionError, KeyError):
            failed += 1
    return failed


@pytest.mark.parametrize("blocks", [RestlessBlocks, SameGeneration])
def test_a_manager_whose_blocks_do_not_rest_is_caught(blocks):
    setup = Setup(blocks=11, flush_tokens=2)
    assert failures(setup) == 0
    assert failures(setup, block_manager=blocks) > 0


def test_a_log_that_is_cut_during_a_recovery_is_caught():
    assert failures(Setup(flush_tokens=3), serving_type=ForgetfulServing) > 0


def test_poisoned_kv_is_caught():
    class SkipsRebuild(World):
        def rebuild(self, lost, ranges):
            pass

    assert failures(Setup(), worlds=SkipsRebuild) > 0


def started(setup=None, **requests):
    world = World(setup or Setup(), 0)
    for name, (prompt, output) in requests.items():
        world.add(name, range(prompt), output)
    return world


def run_step(world):
    plan = world.serving.next_plan()
    world.deliver(world.serving.step_done(plan.step, world.execute(plan)))
    return plan


def test_a_long_prompt_is_computed_in_chunks_and_only_the_last_one_draws():
    world = started(a=(30, 2))
    plans = [run_step(world) for _ in range(4)]
    assert [len(plan.parts[0].token_ids) for plan in plans] == [12, 12, 6, 1]
    assert [plan.parts[0].draw is not None for plan in plans] == [False, False, True, True]


def test_a_replay_sends_only_flushes_that_are_not_committed():
    world = started(a=(4, 5), b=(3, 5))
    first, second = run_step(world), run_step(world)
    assert all(isinstance(task, FlushTask) for task in (*first.flush, *second.flush))
    world.serving.tasks_done([task.task_id for task in second.flush])
    world.serving.roll_back(lambda r: False)
    assert world.serving.steps_after_watermark() == [1, 2]
    assert world.serving.replay_plan(1) == first
    assert world.serving.replay_plan(2) == replace_flush(second, ())


def replace_flush(plan, flush):
    return type(plan)(plan.step, plan.parts, flush)


def test_a_step_that_is_replayed_stays_in_the_log_although_the_watermark_has_passed_it():
    world = started(a=(4, 5))
    first, second = run_step(world), run_step(world)
    world.serving.tasks_done([task.task_id for task in second.flush])
    world.serving.roll_back(lambda r: False)
    world.serving.pin(world.serving.steps_after_watermark())
    world.serving.tasks_done([task.task_id for task in first.flush])
    assert world.serving.ledger.watermark == 2
    assert world.serving.steps_after_watermark() == [1, 2]
    (state,) = world.serving.kv_states(lambda ranges: 0)
    assert state.ranges == (), "until it is replayed, a newcomer has nothing of it"
    for step in (1, 2):
        world.serving.step_done(step, world.execute(world.serving.replay_plan(step)))
    assert world.serving.steps_after_watermark() == []


def test_a_replay_that_draws_another_token_is_counted():
    world = started(a=(4, 5))
    plan = run_step(world)
    (drawn,) = world.execute(plan)
    assert world.serving.step_done(plan.step, [drawn]) == []
    assert world.serving.replay_mismatches == 0
    other = Sampled("a", drawn.token_id + 1, None, ())
    assert world.serving.step_done(plan.step, [other]) == []
    assert world.serving.replay_mismatches == 1
    world.serving.abort("a")
    world.serving.step_done(plan.step, [other])
    assert world.serving.replay_mismatches == 1, "nobody rebuilds the KV of a request that is over"


def test_too_many_steps_behind_wait_for_flushes():
    world = started(Setup(max_lag=3), a=(2, 30))
    plans = [run_step(world) for _ in range(4)]
    assert world.serving.next_plan() is None
    world.serving.tasks_done([task.task_id for task in plans[0].flush])
    assert world.serving.next_plan() is not None


def test_slots_that_wait_for_a_fuller_chunk_are_flushed_when_blocks_are_short():
    """b's blocks rest until the watermark passes, which a's few pending slots hold back; a needs one of them."""
    setup = Setup(blocks=3, block_size=4, flush_tokens=100)
    world = started(setup, a=(3, 8), b=(3, 2))
    world.finish(100)
    assert world.delivered["a"] == expected_tokens(setup, range(3), 8)


def test_an_aborted_request_gives_its_blocks_back_once_the_watermark_has_passed():
    world = started(a=(6, 5))
    plan = run_step(world)
    assert world.serving.blocks.num_free == 22
    assert world.serving.abort("a").request_id == "a"
    assert world.serving.abort("a") is None
    assert world.serving.blocks.num_free == 22, "the flush still reads them"
    world.serving.tasks_done([task.task_id for task in plan.flush])
    assert world.serving.blocks.num_free == 24
    assert world.serving.next_plan() is None


def test_an_unanswered_step_of_a_start_over_is_not_in_the_recording():
    world = started(a=(4, 5))
    world.serving.recording = []
    run_step(world)
    unanswered = world.serving.next_plan()
    world.serving.start_over()
    assert unanswered.step == 2
    assert [entry.plan.step for entry in world.serving.recording] == [1]
    assert world.serving.steps_after_watermark() == []


def test_owners_are_found_by_their_blocks():
    world = started(a=(6, 5), b=(3, 5))
    run_step(world)
    states = {state.request_id: state for state in world.serving.kv_states(lambda ranges: 0)}
    assert states["a"].ranges == ()
    for plan in (world.serving.log[1].plan,):
        for task in plan.flush:
            assert world.serving.owners(task.ranges) == {"a", "b"}
            of_a = [r for r in task.ranges if r.block in plan.parts[0].blocks]
            assert world.serving.owners(of_a) == {"a"}
