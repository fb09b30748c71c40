"""Each protection is broken in turn, from here; the simulation must notice every time."""

import msgspec
import numpy as np
import pytest

from ghostserve.checkpoint.ledger import CheckpointLedger
from ghostserve.codes import RdpCode, ReedSolomonCode, XorCode
from ghostserve.engine import driver as driver_module
from ghostserve.engine.blocks import BlockManager
from ghostserve.engine.coordinator import Coordinator
from ghostserve.engine.datapath import HostDataPath
from ghostserve.engine.driver import RecoveryDriver
from ghostserve.engine.memory import EngineMemory
from ghostserve.engine.scheduler import Scheduler
from ghostserve.engine.serving import Serving
from ghostserve.faultsim.group import SimulatedGroup
from ghostserve.faultsim.run import simulate
from ghostserve.parity.budget import ParityBudget
from ghostserve.parity.ranges import num_slots
from ghostserve.parity.reader import ShardReader
from ghostserve.parity.records import SEAL, seal
from ghostserve.parity.store import ParityStore
from ghostserve.recovery import events as ev
from ghostserve.recovery.machine import RecoveryMachine
from ghostserve.recovery.rebuild import RebuildReport

SEEDS = range(1500)


def skip_checksums(patch):
    patch.setattr(ShardReader, "verify", lambda self, shard, ranges, data: np.ones(len(data), dtype=np.bool_))


def skip_checksums_of_survivors(patch):
    verify = ShardReader.verify

    def trusting(self, shard, ranges, data):
        good = verify(self, shard, ranges, data)
        return np.ones_like(good) if shard not in self._shard_map.lost_shards(self._lost_ranks) else good

    patch.setattr(ShardReader, "verify", trusting)


def ignore_generation(patch):
    def sealed(self, ranges):
        rows = self.store_rows([ranges] if not isinstance(ranges, list | tuple) else ranges)
        records = self._records[rows]
        return records[:, SEAL] == seal(records[:, :SEAL], rows.astype(np.uint64))

    patch.setattr(ParityStore, "committed_slots", sealed)


def trust_any_record(patch):
    def all_of(self, ranges):
        return np.ones(len(self.records(ranges)), dtype=np.bool_)

    patch.setattr(ParityStore, "committed_slots", all_of)


def commit_before_payload(patch):
    stores = ParityStore._stores

    def reordered(self, ranges, parity, checksums):
        clear, payload, *records = stores(self, ranges, parity, checksums)
        return iter([clear, *records, payload])

    patch.setattr(ParityStore, "_stores", reordered)


def accept_old_epoch_writes(patch):
    patch.setattr(ParityStore, "_check_epoch", lambda self, epoch: None)


def forget_earlier_losses(patch):
    begin = RecoveryMachine._begin

    def forgetful(self, reason, ranks, now):
        self.lost_ranks.clear()
        return begin(self, reason, ranks, now)

    patch.setattr(RecoveryMachine, "_begin", forgetful)


def wait_for_ever(patch):
    patch.setattr(RecoveryMachine, "_tick", lambda self, now: [])


def wipe_at_once(patch):
    begin = RecoveryMachine._begin

    def hasty(self, reason, ranks, now):
        return [*begin(self, reason, ranks, now), *(ev.Wipe(rank) for rank in sorted(self.lost_ranks))]

    patch.setattr(RecoveryMachine, "_begin", hasty)


def skip_the_rebuild(patch):
    def pretend(self, lost_ranks, ranges, targets):
        return RebuildReport(num_slots(ranges), 0, 0, 0, (), (), (), (), 0.0)

    patch.setattr(HostDataPath, "rebuild", pretend)


def hide_failed_slots(patch):
    rebuild = HostDataPath.rebuild

    def optimistic(self, lost_ranks, ranges, targets):
        report = rebuild(self, lost_ranks, ranges, targets)
        return RebuildReport(**{**vars(report), "failed": (), "reasons": ()})

    patch.setattr(HostDataPath, "rebuild", optimistic)


def wrong_erasures(patch):
    for code in (XorCode, RdpCode, ReedSolomonCode):
        plan = code.rebuild_plan

        def shifted(self, lost, wanted=None, plan=plan):
            right = plan(self, lost, wanted)
            outputs = right.outputs
            wrong = frozenset((shard + 1) % (self.n + self.k) for shard in lost)
            other = plan(self, wrong, wrong)
            return disguised(right, other) if len(other.outputs) == len(outputs) else right

        patch.setattr(code, "rebuild_plan", shifted)


def disguised(right, other):
    """The other pattern's arithmetic behind the right one's names."""
    return type(right)(right.inputs, right.outputs, other.rows, other.steps)


def replay_token_twice(patch):
    step_done = Serving.step_done

    def again(self, step, sampled):
        self.log[step].accepted = None
        return step_done(self, step, sampled)

    patch.setattr(Serving, "step_done", again)


def forget_the_replay(patch):
    plan = driver_module.plan_recovery
    patch.setattr(driver_module, "plan_recovery", lambda *a, **k: plan(*a, **{**k, "steps_after_watermark": ()}))


def run_ahead_of_the_watermark(patch):
    patch.setattr(CheckpointLedger, "watermark", property(lambda self: self._closed))


def keep_the_generation(patch):
    allocate = BlockManager.allocate

    def same(self, count):
        blocks = allocate(self, count)
        for block in blocks:
            self._generations[block] = 1
        return blocks

    patch.setattr(BlockManager, "allocate", same)


def reuse_blocks_at_once(patch):
    patch.setattr(BlockManager, "free", lambda self, blocks, last_step: self._free.extend(blocks))


def unpin_the_replay(patch):
    patch.setattr(Serving, "pin", lambda self, steps: None)


def keep_finished_blocks(patch):
    patch.setattr(BlockManager, "free", lambda self, blocks, last_step: None)


def forget_flushed_tasks(patch):
    patch.setattr(CheckpointLedger, "acked", lambda self, task_id: False)


def send_no_flush_again(patch):
    patch.setattr(CheckpointLedger, "outstanding_after", lambda self, step: ())


def keep_parity_places(patch):
    patch.setattr(ParityBudget, "release", lambda self, request_id, step: None)


def reuse_parity_places_at_once(patch):
    let_go = ParityBudget._let_go
    patch.setattr(ParityBudget, "_let_go", lambda self, blocks, last_step: let_go(self, blocks, -1))


def resume_requests_that_need_recompute(patch):
    patch.setattr(Serving, "recompute", lambda self, request_ids: [])


def keep_computed_when_restarting(patch):
    restart = Scheduler.restart

    def lazy(self, request):
        computed = request.num_computed
        restart(self, request)
        request.num_computed = min(computed, 1)

    patch.setattr(Scheduler, "restart", lazy)


def never_watch_flushes(patch):
    patch.setattr(Coordinator, "_watch_flushes", lambda self: None)


def never_notice_an_overdue_step(patch):
    patch.setattr(RecoveryMachine, "_probe", lambda self, step, now: [])


def rebuild_only_one_rank(patch):
    rebuild = RecoveryDriver._rebuild

    def partial(self, epoch, lost_ranks, targets):
        rebuild(self, epoch, lost_ranks, targets[:1])
        for worker, _ in targets[1:]:
            self.tell(ev.Rebuilt(worker, epoch))

    patch.setattr(RecoveryDriver, "_rebuild", partial)


def believe_any_step_answer(patch):
    hear = Coordinator._hear

    def credulous(self, worker, message):
        if type(message).__name__ == "StepDone":
            message = msgspec.structs.replace(message, epoch=self._driver.machine.epoch)
            self._running_step = message.step if message.step in self.serving.log else self._running_step
        hear(self, worker, message)

    patch.setattr(Coordinator, "_hear", credulous)


def believe_any_rebuild(patch):
    hear = Coordinator._hear

    def credulous(self, worker, message):
        if type(message).__name__ == "RebuildDone":
            message = msgspec.structs.replace(message, epoch=self._driver.machine.epoch)
        hear(self, worker, message)

    patch.setattr(Coordinator, "_hear", credulous)


def settle_without_looking(patch):
    """At a recovery all flushes count as done."""
    settle = CheckpointLedger.settle
    patch.setattr(CheckpointLedger, "settle", lambda self, is_committed: settle(self, lambda slots: True))


def count_nothing_as_missing(patch):
    patch.setattr(EngineMemory, "count_missing", lambda self, ranges: 0)


def never_kill(patch):
    patch.setattr(SimulatedGroup, "kill", lambda self, worker: None)


def flush_only_what_is_new(patch):
    """A request that gets its parity blocks late is not flushed from its beginning."""
    assign = ParityBudget.assign
    patch.setattr(ParityBudget, "assign", lambda *a: changed(assign(*a), gained=False))


def changed(assignment, **changes):
    return type(assignment)(**{**vars(assignment), **changes})


def flush_what_has_lost_its_place(patch):
    """Slots that wait are flushed also when their request is over, or has been pushed out of the store."""
    patch.setattr(CheckpointLedger, "drop", lambda self, request_id: None)


def find_damage_in_anothers_slots(patch):
    """Whose a slot is by now is not asked."""
    patch.setattr(Serving, "owner", lambda self, slots: next(iter(self.scheduler.running), None))


def expect_everything_to_be_committed(patch):
    """Slots that are written and not flushed yet are scrubbed like the others."""
    patch.setattr(CheckpointLedger, "open_slots", ())


def leave_damage_as_it_is(patch):
    patch.setattr(Serving, "flush_again", lambda self, request_id, ranges: None)


MUTATIONS = [
    skip_checksums,
    skip_checksums_of_survivors,
    ignore_generation,
    trust_any_record,
    commit_before_payload,
    accept_old_epoch_writes,
    forget_earlier_losses,
    wait_for_ever,
    wipe_at_once,
    skip_the_rebuild,
    hide_failed_slots,
    wrong_erasures,
    replay_token_twice,
    forget_the_replay,
    run_ahead_of_the_watermark,
    keep_the_generation,
    reuse_blocks_at_once,
    unpin_the_replay,
    keep_finished_blocks,
    forget_flushed_tasks,
    send_no_flush_again,
    keep_parity_places,
    reuse_parity_places_at_once,
    resume_requests_that_need_recompute,
    keep_computed_when_restarting,
    never_watch_flushes,
    never_notice_an_overdue_step,
    rebuild_only_one_rank,
    believe_any_step_answer,
    believe_any_rebuild,
    settle_without_looking,
    count_nothing_as_missing,
    never_kill,
    flush_only_what_is_new,
    flush_what_has_lost_its_place,
    find_damage_in_anothers_slots,
    expect_everything_to_be_committed,
    leave_damage_as_it_is,
]


@pytest.mark.parametrize("break_it", MUTATIONS)
def test_the_simulation_notices(break_it, tools, monkeypatch):
    with monkeypatch.context() as patch:
        break_it(patch)
        broken = next((o for o in (simulate(seed, tools) for seed in SEEDS) if o.violations), None)
    assert broken is not None, f"{len(SEEDS)} seeds, and nobody noticed"
    # The same seed without the mutation keeps every promise: it was the mutation that was noticed.
    assert not simulate(broken.seed, tools).violations
