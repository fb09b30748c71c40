"""The coordinator's bookkeeping of serving: from requests to step plans, flushes, the watermark and the step log.

Without I/O and without a clock: the coordinator says what was answered, this says what comes next.
"""

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field

import msgspec

from ghostserve.checkpoint.ledger import CheckpointLedger
from ghostserve.engine.blocks import BlockManager
from ghostserve.engine.messages import Sampled, SequencePart, StepPlan
from ghostserve.engine.scheduler import Request, Scheduler
from ghostserve.parity.budget import ParityBudget
from ghostserve.parity.geometry import ShardMap
from ghostserve.parity.ranges import SlotRange, without
from ghostserve.recovery.hybrid import Part
from ghostserve.recovery.planner import KVState

__all__ = ["Accepted", "LoggedStep", "Serving"]


@dataclass(frozen=True)
class Accepted:
    """A token that went to a request, and why it was the last one (if it was)."""

    request: Request
    sampled: Sampled
    finish_reason: str | None


@dataclass
class LoggedStep:
    """One entry of the step log; `accepted` request -> what was drawn and delivered, None until answered."""

    plan: StepPlan
    accepted: dict[str, Sampled] | None = None


@dataclass
class Serving:
    """One engine's requests and their KV. `budget` None: no parity is kept (`--parity none`)."""

    scheduler: Scheduler
    blocks: BlockManager
    ledger: CheckpointLedger
    budget: ParityBudget | None
    shard_map: ShardMap
    max_lag: int = 64
    """Steps that the watermark may stay behind before the next step waits for flushes."""
    step: int = 0
    log: dict[int, LoggedStep] = field(default_factory=dict)
    recording: list[LoggedStep] | None = None
    pinned: set[int] = field(default_factory=set)
    """Steps that a recovery has to run again: they stay in the log until answered, however far the watermark goes."""
    replay_mismatches: int = 0
    preemptions: int = 0
    again: dict[str, tuple[SlotRange, ...]] = field(default_factory=dict)
    """Committed slots of a request that the next step flushes once more."""

    # ---- steps

    def next_plan(self) -> StepPlan | None:
        """The next step, or None if nothing can run now (no request, no block, or flushes are too far behind).

        A step without parts only flushes: what waits for a fuller chunk holds back blocks that somebody needs.
        """
        if self.step - self.ledger.watermark > self.max_lag:
            return None
        step = self.step + 1
        parts = self.scheduler.schedule(step)
        for request in self.scheduler.preempted:
            self._forget(request)
        self.preemptions += len(self.scheduler.preempted)
        self.scheduler.preempted.clear()
        self._settle()
        starved = self.scheduler.short_of_blocks and self.blocks.has_resting
        if not parts and not self.again and not (starved and self.ledger.waiting_tokens):
            return None
        self.step = step
        lagging = step - self.ledger.watermark > self.max_lag // 2
        self.ledger.begin(step)
        for part in parts:
            self._protect(step, part)
        self._repeat_flushes(step)
        tasks = self.ledger.due(step, everything=starved or lagging)
        entry = LoggedStep(StepPlan(step, tuple(parts), tuple(tasks)))
        self.log[step] = entry
        if self.recording is not None:
            self.recording.append(entry)
        return entry.plan

    def step_done(self, step: int, sampled: Sequence[Sampled]) -> list[Accepted]:
        """Rank 0 has answered a step: the tokens that are new. A replayed step gives none, and must repeat itself."""
        entry = self.log[step]
        self.pinned.discard(step)
        if entry.accepted is not None:
            self._compare(entry, sampled)
            self._settle()
            return []
        entry.accepted = {}
        new: list[Accepted] = []
        for drawn in sampled:
            result = self.scheduler.accept(drawn)
            if result is None:
                continue
            entry.accepted[drawn.request_id] = drawn
            request, reason = result
            if reason is not None:
                self._forget(request)
            new.append(Accepted(request, drawn, reason))
        self._settle()
        return new

    def tasks_done(self, task_ids: Sequence[int]) -> None:
        """Flushes are committed: the watermark may go on."""
        for task_id in task_ids:
            self.ledger.acked(task_id)
        self._settle()

    def abort(self, request_id: str) -> Request | None:
        """The client is gone: drop the request; its blocks become free when nothing uses them any more."""
        request = self.scheduler.requests.get(request_id)
        if request is not None:
            self.scheduler.remove(request)
            self._forget(request)
            self._settle()
        return request

    # ---- scrubbing

    def owner(self, slots: SlotRange) -> Request | None:
        """The running request whose protected KV these slots of one block are, still in the same generation."""
        owner = next((r for r in self.scheduler.running if slots.block in r.blocks), None)
        if owner is None or self.budget is None or not self.budget.is_protected(owner.request_id):
            return None
        same = self.blocks.generation(slots.block) == slots.generation
        return owner if same and self.budget.parity_block(slots.block) == slots.parity_block else None

    def committed(self, request: Request, start: int, stop: int) -> tuple[SlotRange, ...]:
        """Of the slots of tokens `start..stop-1` of a running request, those that must be committed by now."""
        if self.budget is None or not self.budget.is_protected(request.request_id):
            return ()
        uncommitted = (*self.ledger.open_slots, *self.again.get(request.request_id, ()))
        return without(self._ranges(request, start, stop), uncommitted)

    def flush_again(self, request_id: str, ranges: Iterable[SlotRange]) -> None:
        """The parity or the record of these slots is damaged, their KV is not: the next step flushes them once more."""
        self.again[request_id] = (*self.again.get(request_id, ()), *ranges)

    # ---- recovery

    def roll_back(self, is_committed: Callable[[SlotRange], bool]) -> int:
        """Count the flushes whose answer was lost; returns the watermark to recover to."""
        self.ledger.settle(is_committed)
        self._settle()
        return self.ledger.watermark

    def kv_states(self, count_missing: Callable[[Sequence[SlotRange]], int]) -> list[KVState]:
        """The KV of each live request as the steps up to the watermark left it."""
        later: dict[str, int] = {}
        for entry in self.log.values():
            for part in entry.plan.parts:
                if self._is_present(part):
                    later.setdefault(part.request_id, part.start)
        states = []
        for request in self.scheduler.running:
            tokens = min(later.get(request.request_id, request.num_computed), request.num_computed)
            ranges, missing = [], 0
            for r in self._ranges(request, 0, tokens):
                if r.parity_block < 0:
                    missing += r.num_slots
                else:
                    ranges.append(r)
            parts = tuple(Part(request.request_id, a, b) for a, b in request.parts if b <= tokens)
            states.append(KVState(request.request_id, tuple(ranges), missing + count_missing(ranges), parts))
        return states

    def part_again(self, part: Part) -> tuple[SequencePart, tuple[SlotRange, ...]]:
        """A share of a live request's KV as a part of a step that draws nothing, and the slots that it writes."""
        request = self.scheduler.requests[part.request_id]
        tokens = tuple(request.tokens[part.start : part.stop])
        blocks = tuple(request.blocks[: self.blocks.needed(part.stop)])
        again = SequencePart(part.request_id, tokens, part.start, blocks, None)
        return again, tuple(self._ranges(request, part.start, part.stop))

    def live_slots(self) -> list[SlotRange]:
        """All slots that running requests have filled, committed or not."""
        return [r for request in self.scheduler.running for r in self._ranges(request, 0, request.num_computed)]

    def steps_after_watermark(self) -> list[int]:
        """Steps to replay, in order."""
        return sorted(self.log)

    def replay_plan(self, step: int) -> StepPlan:
        """A step of the log as it is to be run again: of its flushes only those that are not committed.

        One that is committed would for a moment not be, and nobody would wait for it before its blocks are reused.
        """
        return msgspec.structs.replace(self.log[step].plan, flush=self.ledger.outstanding_after(step))

    def pin(self, steps: Sequence[int]) -> None:
        """These steps are going to be replayed.

        A step may be committed while an older one is not; then a newcomer gets its KV by the replay only, and must
        get it even if the older one is committed before that.
        """
        self.pinned.update(steps)

    def owners(self, ranges: Sequence[SlotRange]) -> set[str]:
        """The requests that own any of these slots."""
        blocks = {r.block for r in ranges}
        return {r.request_id for r in self.scheduler.running if blocks & set(r.blocks)}

    def recompute(self, request_ids: Collection[str]) -> list[Request]:
        """Send these requests back to the head of the queue, oldest first, to be computed from their tokens."""
        restarted = [r for r in reversed(self.scheduler.running) if r.request_id in request_ids]
        for request in restarted:
            self.scheduler.restart(request)
            self._forget(request)
        return restarted

    def start_over(self) -> list[Request]:
        """Nothing can be rebuilt: forget the step log, recompute everything that had KV."""
        restarted = self.recompute([r.request_id for r in self.scheduler.running])
        if self.recording is not None:
            unanswered = {step for step, entry in self.log.items() if entry.accepted is None}
            self.recording = [e for e in self.recording if e.plan.step not in unanswered]
        self.log.clear()
        self.pinned.clear()
        self.ledger.reset()
        self._settle()
        return restarted

    # ---- inside

    def _protect(self, step: int, part: SequencePart) -> None:
        if self.budget is None:
            return
        request = self.scheduler.requests[part.request_id]
        stop = part.start + len(part.token_ids)
        assignment = self.budget.assign(part.request_id, request.blocks, stop, step)
        for gone in assignment.pushed_out:
            self.ledger.drop(gone)
        if assignment.protected:
            start = 0 if assignment.gained else part.start
            ranges = self._ranges(request, start, stop)
            self.ledger.wrote(step, part.request_id, ranges, prefill=stop - start > 1)

    def _repeat_flushes(self, step: int) -> None:
        for request_id, ranges in self.again.items():
            mine = [r for r in ranges if self.owner(r) is self.scheduler.requests[request_id]]
            self.ledger.wrote(step, request_id, mine, prefill=True)
        self.again.clear()

    def _ranges(self, request: Request, start: int, stop: int) -> list[SlotRange]:
        """The slots of tokens `start..stop-1`; parity_block -1 where there is none."""
        size = self.blocks.block_size
        ranges = []
        for index in range(start // size, self.blocks.needed(stop)):
            block = request.blocks[index]
            place = self.budget.parity_block(block) if self.budget is not None else None
            first, last = max(start - index * size, 0), min(stop - index * size, size)
            generation = self.blocks.generation(block)
            ranges.append(SlotRange(block, generation, -1 if place is None else place, first, last))
        return ranges

    def _is_present(self, part: SequencePart) -> bool:
        """True if the part's KV still is its request's: not if that is over, or was sent back to the queue since."""
        request = self.scheduler.requests.get(part.request_id)
        # A block rests while the log speaks of it, so after a restart the first one is another.
        return request is not None and request.blocks[:1] == list(part.blocks[:1])

    def _compare(self, entry: LoggedStep, sampled: Sequence[Sampled]) -> None:
        """A replay must repeat itself, except for requests whose KV nobody rebuilds any more."""
        assert entry.accepted is not None
        present = {part.request_id for part in entry.plan.parts if self._is_present(part)}
        for again in sampled:
            before = entry.accepted.get(again.request_id)
            if again.request_id in present and before is not None and before != again:
                self.replay_mismatches += 1

    def _forget(self, request: Request) -> None:
        """The request's KV is not needed any more: nothing new of it is flushed."""
        self.again.pop(request.request_id, None)
        self.ledger.drop(request.request_id)
        if self.budget is not None:
            self.budget.release(request.request_id, self.step)

    def _settle(self) -> None:
        """Whatever the watermark has passed is over: log entries, resting blocks, parity blocks."""
        watermark = self.ledger.watermark
        for step in [s for s, entry in self.log.items() if s <= watermark and entry.accepted is not None]:
            if step not in self.pinned:
                del self.log[step]
        done = min([watermark, *(s - 1 for s in self.log)])
        self.blocks.reclaim(done)
        if self.budget is not None:
            self.budget.reclaim(done)
