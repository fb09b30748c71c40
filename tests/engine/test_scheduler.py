import pytest

from ghostserve.engine.blocks import BlockManager
from ghostserve.engine.messages import Sampled
from ghostserve.engine.scheduler import Request, Scheduler
from ghostserve.sampling import SamplingParams


class Engine:
    """A scheduler whose every step is committed at once, unless told otherwise."""

    def __init__(self, blocks=8, block_size=4, max_num_seqs=4, max_num_batched_tokens=8):
        self.blocks = BlockManager(blocks, block_size)
        self.scheduler = Scheduler(
            self.blocks, max_num_seqs=max_num_seqs, max_num_batched_tokens=max_num_batched_tokens
        )
        self.step = 0

    def add(self, name, prompt, output=50, **params):
        params = SamplingParams(max_tokens=output, **params)
        request = Request(name, tuple(range(prompt)), params, 7, frozenset({999}))
        self.scheduler.add(request)
        return request

    def run(self, token=1, commit=True):
        self.step += 1
        parts = self.scheduler.schedule(self.step)
        for part in parts:
            if part.draw is not None:
                self.scheduler.accept(Sampled(part.request_id, token, None, ()))
        if commit:
            self.blocks.reclaim(self.step)
        return {part.request_id: len(part.token_ids) for part in parts}


def test_a_long_prompt_comes_in_chunks_and_a_decode_goes_first():
    engine = Engine()
    engine.add("short", 3)
    engine.add("long", 20)
    assert engine.run() == {"short": 3, "long": 5}
    assert engine.run() == {"short": 1, "long": 7}
    assert engine.run() == {"short": 1, "long": 7}
    assert engine.run() == {"short": 1, "long": 1}


def test_no_more_run_than_max_num_seqs():
    engine = Engine(max_num_seqs=2)
    for name in "abc":
        engine.add(name, 2)
    assert set(engine.run()) == {"a", "b"}
    engine.scheduler.remove(engine.scheduler.requests["a"])
    assert set(engine.run()) == {"b", "c"}


def test_when_blocks_run_out_the_newest_gives_way_to_the_older_one():
    engine = Engine(blocks=4)
    a, b = engine.add("a", 4), engine.add("b", 4)
    for _ in range(5):
        engine.run()
    assert (len(a.blocks), len(b.blocks)) == (2, 2)
    while not b.recomputed:
        engine.run()
    assert a.recomputed == 0
    assert engine.scheduler.preempted == [b]
    assert list(engine.scheduler.waiting) == [b]
    assert (b.num_computed, b.blocks) == (0, [])
    assert b.num_output > 0, "its tokens stay: they were delivered"


def test_the_newest_does_not_push_out_an_older_one():
    engine = Engine(blocks=4, block_size=4)
    a, b = engine.add("a", 3), engine.add("b", 10)
    for _ in range(30):
        engine.run()
        assert a.recomputed == 0
    assert b.recomputed > 0 or not b.blocks


def test_while_blocks_rest_nobody_gives_way():
    engine = Engine(blocks=3)
    a, b, gone = engine.add("a", 4), engine.add("b", 3), engine.add("gone", 1)
    engine.run(commit=False)
    assert engine.blocks.num_free == 0
    engine.scheduler.remove(gone)
    for _ in range(9):
        engine.run(commit=False)
    assert engine.scheduler.short_of_blocks
    assert not engine.scheduler.preempted
    engine.blocks.reclaim(engine.step)
    for _ in range(9):
        engine.run()
    assert engine.scheduler.preempted, "now that nothing rests, somebody has to"
    assert b.recomputed + a.recomputed == len(engine.scheduler.preempted)


def test_nobody_comes_in_while_one_that_runs_waits_for_blocks():
    engine = Engine(blocks=4, max_num_batched_tokens=8)
    engine.add("long", 16)
    other = engine.add("other", 4)
    engine.run()
    assert other in engine.scheduler.waiting
    engine.blocks.allocate(1)
    late = engine.add("late", 1)
    assert engine.run() == {}
    assert engine.scheduler.short_of_blocks
    assert late in engine.scheduler.waiting


def test_an_answer_for_a_request_that_is_gone_or_was_sent_back_is_dropped():
    engine = Engine()
    a = engine.add("a", 3)
    engine.scheduler.schedule(1)
    engine.scheduler.restart(a)
    assert engine.scheduler.accept(Sampled("a", 5, None, ())) is None
    assert engine.scheduler.accept(Sampled("who", 5, None, ())) is None
    assert a.num_output == 0


@pytest.mark.parametrize(
    ("token", "params", "reason"),
    [
        (999, {}, "stop"),
        (999, {"ignore_eos": True}, None),
        (5, {"stop_token_ids": (5,)}, "stop"),
        (5, {"stop_token_ids": (5,), "ignore_eos": True}, "stop"),
        (4, {}, None),
        (4, {"output": 1}, "length"),
        (999, {"output": 1}, "stop"),
    ],
)
def test_a_request_ends_for_a_reason(token, params, reason):
    engine = Engine()
    request = engine.add("a", 3, **params)
    engine.scheduler.schedule(1)
    assert engine.scheduler.accept(Sampled("a", token, None, ())) == (request, reason)
    assert ("a" in engine.scheduler.requests) == (reason is None)
    assert engine.blocks.has_resting == (reason is not None)


def test_draws_are_numbered_by_output_tokens_also_after_a_restart():
    engine = Engine()
    a = engine.add("a", 3)
    for counter in range(3):
        (part,) = engine.scheduler.schedule(counter + 1)
        assert part.draw.counter == counter
        assert part.draw.seed == 7
        engine.scheduler.accept(Sampled("a", 1, None, ()))
    engine.scheduler.restart(a)
    (part,) = engine.scheduler.schedule(9)
    assert (part.draw.counter, part.token_ids, part.start) == (3, (0, 1, 2, 1, 1, 1), 0)
