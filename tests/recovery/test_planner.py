from ghostserve.parity.geometry import ShardMap
from ghostserve.parity.ranges import SlotRange
from ghostserve.recovery.planner import KVState, plan_recovery

A = KVState("a", (SlotRange(0, 1, 0, 0, 4), SlotRange(1, 1, 1, 0, 2)), 0)
B = KVState("b", (SlotRange(2, 1, 2, 0, 3),), 0)
BARE = KVState("bare", (SlotRange(3, 1, 3, 0, 4),), 2)
WHOLE = ShardMap(4, 4)
PAIRS = ShardMap(4, 2)


def plan(requests, lost, shard_map=WHOLE, parity=2, steps=(8, 9)):
    return plan_recovery(requests, steps_after_watermark=steps, lost_ranks=lost, shard_map=shard_map, parity=parity)


def test_without_a_loss_only_steps_are_replayed():
    outcome = plan([A, BARE], [])
    assert (outcome.rebuild, outcome.replay, outcome.recompute) == ((), (8, 9), {})
    assert not outcome.start_over
    assert outcome.reasons == ("no rank lost its KV: nothing to rebuild",)


def test_as_many_losses_as_parity_are_decoded():
    for lost in ([0], [1, 3]):
        outcome = plan([A, B], lost)
        assert outcome.rebuild == A.ranges + B.ranges
        assert outcome.replay == (8, 9)
        assert (outcome.recompute, outcome.start_over) == ({}, False)
        assert outcome.reasons == (
            f"9 slots of ranks {lost} are decoded from {4 - len(lost)} survivors and parity",
            "2 steps are replayed",
        )


def test_more_losses_than_parity_start_over():
    outcome = plan([A, B], [0, 1, 2])
    assert outcome.start_over
    assert (outcome.rebuild, outcome.replay) == ((), ())
    reason = "3 data shards are lost, parity covers 2"
    assert outcome.recompute == {"a": reason, "b": reason}
    assert outcome.reasons == (reason,)


def test_without_parity_any_loss_starts_over():
    assert plan([A], [2], parity=0).start_over


def test_a_shard_with_a_live_replica_is_copied_even_without_parity_to_spare():
    outcome = plan([A], [0, 2], PAIRS, parity=1)
    assert outcome.rebuild == A.ranges
    assert outcome.reasons[0] == "6 slots of ranks [0, 2] are copied from replicas"


def test_only_shards_all_of_whose_holders_are_gone_count_as_lost():
    assert not plan([A], [0, 1, 2], PAIRS, parity=1).start_over
    assert plan([A], [0, 1, 2, 3], PAIRS, parity=1).start_over


def test_a_request_without_parity_is_recomputed_and_the_others_are_not():
    outcome = plan([A, BARE], [1])
    assert outcome.rebuild == A.ranges
    assert outcome.recompute == {"bare": "2 of its 4 slots have no parity"}
    assert outcome.reasons[-1] == "2 of its 4 slots have no parity"


def test_a_copy_needs_the_records_too():
    """A slot without a parity block is in nobody's ranges: copied by nobody, it must be recomputed."""
    outcome = plan([A, BARE], [0], PAIRS)
    assert outcome.rebuild == A.ranges
    assert set(outcome.recompute) == {"bare"}
