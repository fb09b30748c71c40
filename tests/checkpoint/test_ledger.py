import msgspec
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from ghostserve.checkpoint import CheckpointLedger, FlushTask
from ghostserve.errors import ConfigError
from ghostserve.parity.ranges import SlotRange, merge, num_slots, singles


def slots(block, start, stop):
    return SlotRange(block, 1, block, start, stop)


def run_step(ledger, step, writes, prefill=False):
    ledger.begin(step)
    for name, ranges in writes.items():
        ledger.wrote(step, name, ranges, prefill)
    return ledger.due(step)


def test_a_task_survives_the_wire():
    task = FlushTask(4, 2, 1, (slots(3, 0, 5), slots(4, 0, 1)))
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(task), type=FlushTask) == task


def test_every_step_is_flushed_and_the_watermark_follows_the_acks():
    ledger = CheckpointLedger(num_ranks=3)
    assert ledger.watermark == -1
    (first,) = run_step(ledger, 0, {"a": [slots(0, 0, 4), slots(1, 0, 2)]}, prefill=True)
    assert first == FlushTask(0, 0, 0, (slots(0, 0, 4), slots(1, 0, 2)))
    (second,) = run_step(ledger, 1, {"a": [slots(1, 2, 3)]})
    assert ledger.unprotected_tokens == 7
    assert ledger.acked(second.task_id)
    assert ledger.watermark == -1, "step 0 is not committed yet"
    assert ledger.acked(first.task_id)
    assert ledger.watermark == 1
    assert not ledger.acked(first.task_id)
    assert (ledger.watermark, ledger.unprotected_tokens, ledger.outstanding) == (1, 0, ())


def test_a_step_without_slots_commits_once_those_before_it_have():
    ledger = CheckpointLedger(num_ranks=2)
    (task,) = run_step(ledger, 0, {"a": [slots(0, 0, 1)]})
    assert run_step(ledger, 1, {}) == []
    assert run_step(ledger, 2, {"b": []}) == []
    assert ledger.watermark == -1
    ledger.acked(task.task_id)
    assert ledger.watermark == 2


def test_a_step_under_way_is_never_below_the_watermark():
    ledger = CheckpointLedger(num_ranks=2)
    ledger.begin(0)
    assert ledger.watermark == -1
    ledger.due(0)
    assert ledger.watermark == 0


def test_decode_slots_wait_until_there_are_enough():
    ledger = CheckpointLedger(num_ranks=3, flush_tokens=3)
    assert run_step(ledger, 0, {"a": [slots(0, 0, 1)]}) == []
    assert run_step(ledger, 1, {"a": [slots(0, 1, 2)], "b": [slots(5, 0, 1)]}) == []
    (task,) = run_step(ledger, 2, {"a": [slots(0, 2, 3)]})
    assert task.ranges == (slots(0, 0, 3),), "of three steps, as one range"
    ledger.acked(task.task_id)
    assert ledger.watermark == 0, "step 1 wrote a slot of b that still waits"
    (task,) = run_step(ledger, 3, {"b": [slots(5, 1, 3)]})
    ledger.acked(task.task_id)
    assert ledger.watermark == 3


def test_a_prefill_is_flushed_with_its_step_and_alone():
    ledger = CheckpointLedger(num_ranks=3, flush_tokens=100)
    assert run_step(ledger, 0, {"a": [slots(0, 0, 1)]}) == []
    (task,) = run_step(ledger, 1, {"b": [slots(1, 0, 4)]}, prefill=True)
    assert task.ranges == (slots(1, 0, 4),)


def test_too_many_waiting_slots_are_all_flushed():
    ledger = CheckpointLedger(num_ranks=3, flush_tokens=100, max_unprotected_tokens=3)
    assert run_step(ledger, 0, {"a": [slots(0, 0, 1)], "b": [slots(1, 0, 2)]}) == []
    (task,) = run_step(ledger, 1, {"a": [slots(0, 1, 2)]})
    assert num_slots(task.ranges) == 4


def test_round_robin_takes_turns_by_chunk():
    ledger = CheckpointLedger(num_ranks=3)
    encoders = [run_step(ledger, i, {"a": [slots(i, 0, 1)]})[0].encoder for i in range(5)]
    assert encoders == [0, 1, 2, 0, 1]


def test_striped_gives_every_rank_its_share():
    ledger = CheckpointLedger(num_ranks=3, encoder="striped")
    tasks = run_step(ledger, 0, {"a": [slots(0, 0, 4), slots(1, 0, 3)]}, prefill=True)
    assert [num_slots(t.ranges) for t in tasks] == [2, 2, 3]
    assert sorted(t.encoder for t in tasks) == [0, 1, 2]
    assert merge(s for t in tasks for s in singles(t.ranges)) == (slots(0, 0, 4), slots(1, 0, 3))
    for task in tasks:
        assert ledger.watermark == -1
        ledger.acked(task.task_id)
    assert ledger.watermark == 0
    assert [t.encoder for t in run_step(ledger, 1, {"a": [slots(1, 3, 4)]})] == [1], "one slot, the next rank"


def test_dropping_forgets_what_waits_and_keeps_what_was_sent():
    ledger = CheckpointLedger(num_ranks=2, flush_tokens=2)
    (task,) = run_step(ledger, 0, {"a": [slots(0, 0, 4)]}, prefill=True)
    run_step(ledger, 1, {"a": [slots(1, 0, 1)]})
    ledger.drop("a")
    ledger.drop("nobody")
    assert ledger.outstanding == (task,)
    assert ledger.unprotected_tokens == 4
    assert ledger.is_read(0)
    assert not ledger.is_read(1)
    ledger.acked(task.task_id)
    assert not ledger.is_read(0)
    assert ledger.watermark == 1


def test_a_lost_ack_is_settled_from_the_store():
    ledger = CheckpointLedger(num_ranks=2)
    (first,) = run_step(ledger, 0, {"a": [slots(0, 0, 4), slots(1, 0, 1)]}, prefill=True)
    (second,) = run_step(ledger, 1, {"a": [slots(1, 1, 2)]})
    assert ledger.settle(lambda r: r.block == 1) == (second.task_id,)
    assert ledger.watermark == -1
    assert ledger.settle(lambda r: True) == (first.task_id,)
    assert ledger.watermark == 1


def test_a_reset_forgets_everything_up_to_the_last_closed_step():
    ledger = CheckpointLedger(num_ranks=2, flush_tokens=2)
    run_step(ledger, 0, {"a": [slots(0, 0, 4)]}, prefill=True)
    run_step(ledger, 1, {"a": [slots(1, 0, 1)]})
    ledger.reset()
    assert (ledger.watermark, ledger.outstanding, ledger.unprotected_tokens) == (1, (), 0)
    assert not ledger.is_read(0)
    (task,) = run_step(ledger, 2, {"a": [slots(1, 1, 3)]})
    assert (ledger.watermark, task.ranges) == (1, (slots(1, 1, 3),))


def test_a_replay_finds_the_tasks_of_its_steps():
    ledger = CheckpointLedger(num_ranks=2, encoder="striped")
    one = run_step(ledger, 0, {"a": [slots(0, 0, 4)]}, prefill=True)
    two = run_step(ledger, 1, {"a": [slots(1, 0, 2)]})
    ledger.acked(two[0].task_id)
    assert ledger.outstanding_after(0) == tuple(one)
    assert ledger.outstanding_after(1) == (two[1],)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda ledger: ledger.begin(0),
        lambda ledger: ledger.begin(2),
        lambda ledger: ledger.wrote(0, "a", [slots(0, 0, 1)], prefill=False),
        lambda ledger: ledger.wrote(2, "a", [slots(0, 0, 1)], prefill=False),
        lambda ledger: ledger.due(0),
        lambda ledger: (ledger.due(1), ledger.due(1)),
    ],
)
def test_steps_out_of_order_are_refused(wrong):
    ledger = CheckpointLedger(num_ranks=2)
    ledger.begin(0)
    ledger.due(0)
    ledger.begin(1)
    with pytest.raises(ValueError, match="step"):
        wrong(ledger)


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({"num_ranks": 0}, "num_ranks"),
        ({"num_ranks": 2, "flush_tokens": 0}, "flush_tokens"),
        ({"num_ranks": 2, "max_unprotected_tokens": 0}, "max_unprotected_tokens"),
        ({"num_ranks": 2, "encoder": "random"}, "encoder"),
    ],
)
def test_bad_settings_are_refused_by_name(settings, name):
    with pytest.raises(ConfigError, match=name):
        CheckpointLedger(**settings)


class Ledgers(RuleBasedStateMachine):
    """The watermark never passes a step with a slot that is neither acked nor dropped."""

    @initialize(flush=st.integers(1, 4), bound=st.integers(1, 12), striped=st.booleans())
    def start(self, flush, bound, striped):
        self.ledger = CheckpointLedger(3, flush, bound, "striped" if striped else "round_robin")
        self.bound = bound
        self.step = 0
        self.waiting = {}  # slot -> (request, step that wrote it), not dispatched
        self.sent = {}  # task -> steps that wrote its slots
        self.next_slot = 0

    @rule(writes=st.dictionaries(st.sampled_from("abc"), st.integers(1, 3)), prefill=st.booleans())
    def step_forward(self, writes, prefill):
        self.ledger.begin(self.step)
        for name, count in writes.items():
            ranges = [slots(self.next_slot, 0, count)]
            self.next_slot += 1
            self.ledger.wrote(self.step, name, ranges, prefill)
            self.waiting.update(dict.fromkeys(singles(ranges), (name, self.step)))
        tasks = self.ledger.due(self.step)
        chunk = {s for t in tasks for s in singles(t.ranges)}
        assert sum(num_slots(t.ranges) for t in tasks) == len(chunk)
        for task in tasks:
            self.sent[task.task_id] = [self.waiting[s][1] for s in singles(task.ranges)]
        for slot in chunk:
            del self.waiting[slot]
        if prefill:
            assert not any(step == self.step for _, step in self.waiting.values())
        assert len(self.waiting) <= self.bound
        self.step += 1

    @precondition(lambda self: self.sent)
    @rule(data=st.data())
    def ack(self, data):
        task_id = data.draw(st.sampled_from(sorted(self.sent)))
        del self.sent[task_id]
        assert self.ledger.acked(task_id)

    @rule(name=st.sampled_from("abc"))
    def drop(self, name):
        self.ledger.drop(name)
        self.waiting = {s: w for s, w in self.waiting.items() if w[0] != name}

    @invariant()
    def watermark_is_behind_everything_open(self):
        open_steps = [step for _, step in self.waiting.values()]
        open_steps += [step for steps in self.sent.values() for step in steps]
        assert self.ledger.watermark < min([*open_steps, self.step])
        if not open_steps:
            assert self.ledger.watermark == self.step - 1
        assert {t.task_id for t in self.ledger.outstanding} == set(self.sent)


Ledgers.TestCase.settings = settings(max_examples=80, stateful_step_count=30, deadline=None)
TestLedgers = Ledgers.TestCase
