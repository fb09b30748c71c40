"""What the executor knows about the KV's safety: the store, what is flushed, the step log, what can be rebuilt."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ghostserve.checkpoint.ledger import CheckpointLedger
from ghostserve.checkpoint.tasks import FlushTask
from ghostserve.codes import make_code
from ghostserve.parity.geometry import ShardMap, StoreGeometry
from ghostserve.parity.ranges import SlotRange, num_slots
from ghostserve.parity.store import ParityStore
from ghostserve.vllm.arena import handle_of
from ghostserve.vllm.config import PluginConfig
from ghostserve.vllm.messages import StepNotes, StoreHandle
from ghostserve.vllm.scheduler import ProtectedOutput
from ghostserve.vllm.steplog import LoggedStep, StepLog

if TYPE_CHECKING:
    from vllm.v1.core.sched.output import SchedulerOutput
    from vllm.v1.outputs import ModelRunnerOutput

    from ghostserve.vllm.worker import CacheFacts

__all__ = ["Protection", "Rebuilding"]


@dataclass(frozen=True)
class Rebuilding:
    """What a recovery does about lost caches: `ranges` are rebuilt, or everything starts over; and why."""

    ranges: tuple[SlotRange, ...]
    start_over: bool
    reason: str


class Protection:
    """Made when the cache's size is known. Whoever holds the calls' lock uses it."""

    def __init__(self, config: PluginConfig, shard_map: ShardMap, cache: "CacheFacts") -> None:
        """Takes the host memory for parity. Raises `MemoryBudgetError` or `ConfigError`."""
        self._config, self._cache = config, cache
        self.shard_map = shard_map
        self.code = make_code(config.parity, shard_map.num_shards)
        self.store: ParityStore | None = None
        if self.code is not None:
            geometry = StoreGeometry(self.code.n, self.code.k, cache.num_blocks, cache.block_size, cache.slot_bytes)
            self.store = ParityStore.create(geometry)
        self.ledger = CheckpointLedger(
            shard_map.world_size,
            flush_tokens=config.flush_tokens,
            max_unprotected_tokens=config.max_unprotected_tokens,
            encoder=config.encoder,
        )
        self.ledger.begin(0)
        self.ledger.due(0)  # before the first step everything is committed
        self.log = StepLog(cache.num_blocks, cache.block_size)
        self.losses = 0
        """How often all KV was given up."""
        self.on_lost: Callable[[Sequence[LoggedStep]], object] = lambda entries: None
        """Told of steps that never come to an answer."""

    @property
    def handle(self) -> StoreHandle:
        """How workers find the store."""
        memory = handle_of(self.store.region) if self.store is not None else b""
        cache, shards = self._cache, self.shard_map.num_shards
        parity = self._config.parity if self.store is not None else "none"
        return StoreHandle(memory, parity, shards, cache.num_blocks, cache.block_size, cache.slot_bytes)

    @property
    def data_path(self) -> str:
        """How parity gets to the store, as the status calls it."""
        return self._cache.data_path if self.store is not None else "none"

    # ---- serving

    def begin(self, scheduled: "SchedulerOutput") -> tuple[LoggedStep, StepNotes]:
        """The next step: its log entry, and what workers are told with it."""
        entry = self.log.begin(scheduled)
        self.ledger.begin(entry.step)
        if self.store is not None:
            self.ledger.wrote(entry.step, "", entry.writes, prefill=False)
        tasks = self.ledger.due(entry.step)
        return entry, StepNotes(entry.step, self.log.base.step, tuple(tasks))

    def refuse(self, scheduled: "SchedulerOutput") -> LoggedStep:
        """A step that counts on KV which was given up: it is not run, only what it says of requests is kept."""
        entry = self.log.begin(scheduled)
        self.ledger.begin(entry.step)
        self.ledger.due(entry.step)
        self.log.forget()
        return entry

    def again(self, entry: LoggedStep) -> StepNotes:
        """The same for a step that is run again: of its flushes only those that are not committed."""
        return StepNotes(entry.step, self.log.base.step, self.ledger.outstanding_after(entry.step))

    def answered(self, entry: LoggedStep, output: "ModelRunnerOutput") -> int:
        """The step's answer has come; returns how many steps with tokens are settled."""
        entry.output = output
        self.log.settle(self.ledger.watermark)
        return self.log.base.ordinal

    def flushed(self, task_ids: Sequence[int]) -> None:
        for task_id in task_ids:
            self.ledger.acked(task_id)
        self.log.settle(self.ledger.watermark)

    def oldest_flush(self, before: int) -> FlushTask | None:
        """The oldest flush that is not committed, of the steps before `before`."""
        return next((task for task in self.ledger.outstanding if task.step < before), None)

    # ---- recovery

    def fence(self, epoch: int) -> None:
        """From here on nothing of an older epoch is committed."""
        if self.store is not None and self.store.epoch < epoch:
            self.store.advance(epoch)

    def plan(self, lost_ranks: Sequence[int]) -> Rebuilding:
        """What can be done about the caches of `lost_ranks`. All survivors have been released: no flush runs."""
        store = self.store
        if store is not None:
            self.ledger.settle(lambda slots: bool(store.committed_slots([slots]).all()))
            self.log.settle(self.ledger.watermark)
        if not lost_ranks:
            return Rebuilding((), False, "no rank lost its KV: nothing to rebuild")
        lost = self.shard_map.lost_shards(lost_ranks)
        parity = self.code.k if self.code is not None else 0
        if len(lost) > parity or store is None:
            return Rebuilding((), True, f"{len(lost)} data shards are lost, parity covers {parity}")
        ranges = tuple(self.log.filled())
        return Rebuilding(ranges, False, f"{num_slots(ranges)} slots of ranks {list(lost_ranks)} are rebuilt")

    def start_over(self) -> None:
        """All KV is given up."""
        self.losses += 1
        self.on_lost([entry for entry in self.log.entries if entry.output is None])
        self.log.forget()
        self.ledger.reset()

    def lost_output(self) -> ProtectedOutput:
        """For a step that never comes to an answer."""
        return ProtectedOutput.lost(settled=self.log.base.ordinal, losses=self.losses)

    def close(self) -> None:
        """Give the host memory back. Idempotent."""
        if self.store is not None:
            self.store.region.close()
