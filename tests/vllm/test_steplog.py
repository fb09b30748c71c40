"""The step log against a model runner that remembers how it stood after every step."""

import copy
import random
from types import SimpleNamespace

import pytest

from ghostserve.parity.ranges import SlotRange
from ghostserve.vllm.steplog import StepLog

SIZE, BLOCKS = 4, 64


def new(name, tokens, blocks, computed=0, prompt_logprobs=None):
    return SimpleNamespace(
        req_id=name,
        prompt_token_ids=list(range(tokens)),
        prompt_len=tokens,
        block_ids=(blocks,),
        num_computed_tokens=computed,
        sampling_params=SimpleNamespace(prompt_logprobs=prompt_logprobs),
    )


def step(counts, *, fresh=(), cached=(), resumed=(), finished=(), copies=None):
    """`cached`: (name, new blocks or None, computed tokens, output tokens)."""
    return SimpleNamespace(
        scheduled_new_reqs=list(fresh),
        scheduled_cached_reqs=SimpleNamespace(
            req_ids=[name for name, *_ in cached],
            new_block_ids=[None if blocks is None else (blocks,) for _, blocks, *_ in cached],
            num_computed_tokens=[computed for *_, computed, _ in cached],
            num_output_tokens=[drawn for *_, drawn in cached],
            resumed_req_ids=set(resumed),
        ),
        num_scheduled_tokens=dict(counts),
        total_num_scheduled_tokens=sum(counts.values()),
        finished_req_ids=set(finished),
        kv_cache_block_copies=copies,
    )


def answer(**tokens):
    return SimpleNamespace(req_ids=list(tokens), sampled_token_ids=list(tokens.values()))


def slots(entry):
    return [(r.block, r.generation, r.start, r.stop) for r in entry.writes]


@pytest.fixture
def log():
    return StepLog(BLOCKS, SIZE)


def test_a_prefill_and_its_decodes_write_their_slots(log):
    assert slots(log.begin(step({"a": 6}, fresh=[new("a", 6, [3, 5])]))) == [(3, 1, 0, 4), (5, 1, 0, 2)]
    assert slots(log.begin(step({"a": 1}, cached=[("a", None, 6, 1)]))) == [(5, 1, 2, 3)]
    assert slots(log.begin(step({"a": 2}, cached=[("a", [9], 7, 2)]))) == [(5, 1, 3, 4), (9, 1, 0, 1)]


def test_a_block_that_is_handed_out_again_begins_a_new_generation(log):
    log.begin(step({"a": 4}, fresh=[new("a", 4, [3])]))
    entry = log.begin(step({"b": 4}, fresh=[new("b", 4, [3])], finished=["a"]))
    assert slots(entry) == [(3, 2, 0, 4)]
    assert not log.is_needed(SlotRange(3, 1, 3, 0, 4))
    assert log.is_needed(SlotRange(3, 2, 3, 0, 4))


def test_blocks_that_come_from_the_prefix_cache_keep_their_generation(log):
    log.begin(step({"a": 8}, fresh=[new("a", 8, [3, 4])]))
    entry = log.begin(step({"b": 2}, fresh=[new("b", 6, [3, 7], computed=4)], finished=["a"]))
    assert slots(entry) == [(7, 1, 0, 2)]
    assert log.is_needed(SlotRange(3, 1, 3, 0, 4))


def test_a_block_begun_as_a_copy_is_written_from_its_first_slot(log):
    log.begin(step({"a": 8}, fresh=[new("a", 8, [3, 4])]))
    copies = [SimpleNamespace(src_block_id=4, dst_block_id=7)]
    entry = log.begin(step({"b": 1}, fresh=[new("b", 7, [3, 7], computed=6)], copies=copies))
    assert slots(entry) == [(7, 1, 0, 3)]


def test_the_null_block_holds_nothing(log):
    log.begin(step({"a": 8}, fresh=[new("a", 8, [0, 4])]))
    assert slots(log.entries[-1]) == [(4, 1, 0, 4)]


def test_the_last_answered_step_is_never_settled(log):
    log.begin(step({"a": 1}, fresh=[new("a", 1, [1])])).output = answer(a=[1])
    for number in range(1, 3):
        log.begin(step({"a": 1}, cached=[("a", None, number, number)])).output = answer(a=[number])
    assert log.settle(watermark=9) == 2
    assert [entry.step for entry in log.entries] == [3]


def test_what_is_not_committed_or_not_answered_is_not_settled(log):
    entries = [log.begin(step({"a": 1}, fresh=[new("a", 1, [1])]))]
    entries += [log.begin(step({"a": 1}, cached=[("a", None, n, n)])) for n in range(1, 4)]
    entries[0].output, entries[1].output = answer(a=[7]), answer(a=[8])
    assert log.settle(watermark=0) == 0
    assert log.settle(watermark=4) == 1


def test_the_base_stays_before_a_prefill_whose_prompt_is_being_scored(log):
    log.begin(step({"a": 1}, fresh=[new("a", 1, [1])])).output = answer(a=[5])
    log.begin(step({"b": 4}, fresh=[new("b", 10, [2, 3, 4], prompt_logprobs=1)])).output = answer(b=[])
    log.begin(step({"b": 4}, cached=[("b", None, 4, 0)])).output = answer(b=[])
    assert log.settle(watermark=3) == 1
    log.begin(step({"b": 2}, cached=[("b", None, 8, 0)])).output = answer(b=[6])
    log.begin(step({"b": 1}, cached=[("b", None, 10, 1)])).output = answer(b=[7])
    assert log.settle(watermark=5) == 1, "the step that shows the prefill's end may still be run again"
    log.begin(step({"b": 1}, cached=[("b", None, 11, 2)])).output = answer(b=[8])
    assert log.settle(watermark=6) == 5


def test_forgetting_keeps_the_requests_and_what_was_answered(log):
    log.begin(step({"a": 2}, fresh=[new("a", 2, [1])])).output = answer(a=[5])
    lost = log.begin(step({"a": 1, "b": 3}, fresh=[new("b", 3, [2])], cached=[("a", None, 2, 1)]))
    log.forget()
    assert lost.lost
    assert not log.entries
    assert not log.filled()
    assert log.base.batch == []
    assert {name: request.outputs for name, request in log.base.requests.items()} == {"a": [5], "b": []}


class Runner:
    """Does to its requests what vLLM's model runner does, and remembers each step's outcome."""

    def __init__(self):
        self.requests, self.batch, self.after = {}, [], {}

    def run(self, number, scheduled, output):
        for name in scheduled.finished_req_ids:
            self.requests.pop(name, None)
        for request in scheduled.scheduled_new_reqs:
            self.requests[request.req_id] = {"blocks": list(request.block_ids[0]), "outputs": []}
        cached = scheduled.scheduled_cached_reqs
        for name, added in zip(cached.req_ids, cached.new_block_ids, strict=True):
            blocks = self.requests[name]["blocks"]
            if name in cached.resumed_req_ids:
                blocks.clear()
            blocks.extend(added[0] if added else ())
        for name, tokens in zip(output.req_ids, output.sampled_token_ids, strict=True):
            self.requests[name]["outputs"] += tokens
        self.batch = list(output.req_ids)
        self.after[number] = copy.deepcopy((self.requests, self.batch))


@pytest.mark.parametrize("seed", range(60))
def test_the_base_is_what_every_runner_had(seed):
    """Random lives: arrivals, chunks, decodes, preemptions, ends; answers and commits lag behind at random."""
    dice = random.Random(seed)
    log, runner = StepLog(4096, SIZE), Runner()
    live, waiting, ended, names, free = {}, {}, [], 0, iter(range(1, 4096))
    watermark, unanswered = 0, []
    for number in range(1, 60):
        fresh, cached, counts, resumed = [], [], {}, set()
        for name in [name for name in live if dice.random() < 0.08]:
            waiting[name] = live.pop(name)
        for name, state in list(live.items()):
            if dice.random() < 0.85:
                left = state["length"] - state["computed"]
                count = dice.randint(1, left) if left else 1
                need = -(-(state["computed"] + count) // SIZE) - state["blocks"]
                cached.append((name, [next(free) for _ in range(need)] or None, state["computed"], state["drawn"]))
                state["blocks"] += need
                counts[name] = count
        for name in [name for name in waiting if dice.random() < 0.3]:
            state = live[name] = waiting.pop(name)
            state["computed"], state["length"] = 0, state["length"] + state["drawn"]
            count = dice.randint(1, state["length"])
            state["blocks"] = -(-count // SIZE)
            cached.append((name, [next(free) for _ in range(state["blocks"])], 0, state["drawn"]))
            resumed.add(name)
            counts[name] = count
        if dice.random() < 0.4:
            name, names = f"r{names}", names + 1
            length = dice.randint(1, 12)
            count = dice.randint(1, length)
            blocks = [next(free) for _ in range(-(-count // SIZE))]
            fresh.append(new(name, length, blocks))
            live[name] = {"length": length, "computed": 0, "blocks": len(blocks), "drawn": 0}
            counts[name] = count
        scheduled = step(counts, fresh=fresh, cached=cached, resumed=resumed, finished=ended)
        ended = []
        drawn = {}
        for name, count in counts.items():
            state = live[name]
            state["computed"] += count
            state["length"] = max(state["length"], state["computed"])
            drawn[name] = [dice.randrange(1000)] if state["computed"] == state["length"] else []
            state["drawn"] += len(drawn[name])
        output = answer(**drawn)
        entry = log.begin(scheduled)
        runner.run(number, scheduled, output)
        unanswered.append((entry, output))
        for name in [name for name in live if dice.random() < 0.05]:
            ended.append(name)
            del live[name]
        for late, its in unanswered[: dice.randint(0, 2)]:
            late.output = its
            unanswered.pop(0)
        watermark = max(watermark, number - dice.randint(0, 4))
        base = log.settle(watermark)
        assert base <= watermark
        assert base < number
        if base:
            requests, batch = runner.after[base]
            found = {n: {"blocks": r.blocks, "outputs": r.outputs} for n, r in log.base.requests.items()}
            assert found == requests
            assert log.base.batch == batch
    assert log.base.step > 20
