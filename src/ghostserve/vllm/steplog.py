"""The step log of vLLM's model runners: which steps ran since the last one that is settled, and how things stood then.

Model runners keep their requests between steps and are told differences only. So the log keeps the state that all
differences up to the settled step have led to (`base`), and the steps after it as they were sent. A recovery restores
the base on every rank and runs the steps again, word for word: the scheduler need not know.

A step is settled when its KV is committed, its answer has come, and a younger one has begun on every rank that can
still be asked for its random state: the last answered step is always run again.
"""

import sys
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ghostserve.parity.ranges import SlotRange

if TYPE_CHECKING:
    from vllm.v1.core.sched.output import GrammarOutput, NewRequestData, SchedulerOutput
    from vllm.v1.outputs import ModelRunnerOutput

__all__ = ["BaseState", "LoggedStep", "RequestState", "StepLog"]

_NULL_BLOCK = 0
"""vLLM's block that stands for none: it holds nobody's KV."""
_OPEN = sys.maxsize


@dataclass
class RequestState:
    """A request as a model runner knows it; `outputs` are the tokens drawn so far, `blocks` those of its only group."""

    new: "NewRequestData"
    blocks: list[int]
    num_computed: int
    outputs: list[int] = field(default_factory=list)


@dataclass
class BaseState:
    """All model runners' requests right after `step`; `batch`: the order of its batch.

    `ordinal` counts steps as vLLM's scheduler does: those with tokens only.
    """

    step: int
    ordinal: int = 0
    requests: dict[str, RequestState] = field(default_factory=dict)
    batch: list[str] = field(default_factory=list)


@dataclass
class LoggedStep:
    """One step: what was sent, the slots it writes, and the answer once there is one."""

    step: int
    ordinal: int
    scheduled: "SchedulerOutput"
    writes: tuple[SlotRange, ...]
    grammar: "GrammarOutput | None" = None
    sampled: bool = False
    """`sample_tokens` was sent, too."""
    lost: bool = False
    """All KV was given up before there was an answer: none will come."""
    output: "ModelRunnerOutput | None" = None


class StepLog:
    """Steps are numbered from 1. Not thread-safe: whoever holds the calls' lock uses it."""

    def __init__(self, num_blocks: int, block_size: int) -> None:
        self.base = BaseState(0)
        self.entries: deque[LoggedStep] = deque()
        self._block_size = block_size
        self._generations = [0] * num_blocks
        self._filled: dict[int, SlotRange] = {}
        # How requests stand after the last step that was sent: its slots are found with it.
        self._tables: dict[str, list[int]] = {}
        self._last = self._ordinal = 0
        # Steps first..last of a prefill whose prompt logprobs gather in the model runner: no base between them.
        self._scoring: dict[str, tuple[int, int]] = {}

    # ---- serving

    def begin(self, scheduled: "SchedulerOutput") -> LoggedStep:
        """A new step is about to be sent."""
        self._last += 1
        self._ordinal += scheduled.total_num_scheduled_tokens > 0
        entry = LoggedStep(self._last, self._ordinal, scheduled, tuple(self._writes(scheduled)))
        self._note_scoring(entry)
        self.entries.append(entry)
        return entry

    @property
    def last(self) -> int:
        return self._last

    @property
    def answered(self) -> int:
        """The last step whose answer has come; answers come in order."""
        number = self.base.step
        for entry in self.entries:
            if entry.output is None:
                break
            number = entry.step
        return number

    def settle(self, watermark: int) -> int:
        """Move the base on as far as it can go; returns its step."""
        limit = self._without_scoring(min(watermark, self.answered - 1))
        while self.entries and self.entries[0].step <= limit:
            self._apply(self.entries.popleft())
        return self.base.step

    # ---- recovery

    def filled(self) -> list[SlotRange]:
        """All slots that steps up to the base have filled, in the generation that they then had."""
        return list(self._filled.values())

    def is_needed(self, slots: SlotRange) -> bool:
        """False if the block has been handed out again since: a replay fills it."""
        return self._generations[slots.block] == slots.generation

    def forget(self) -> None:
        """All KV is given up: the base becomes the state after the last step, answers that never came left out."""
        while self.entries:
            self.entries[0].lost = self.entries[0].output is None
            self._apply(self.entries.popleft())
        self._filled.clear()
        self.base.batch.clear()

    # ---- inside

    def _note_scoring(self, entry: LoggedStep) -> None:
        scheduled = entry.scheduled
        for request_id in scheduled.finished_req_ids & self._scoring.keys():
            self._scoring[request_id] = (self._scoring[request_id][0], entry.step)
        for new in scheduled.scheduled_new_reqs:
            if new.sampling_params is not None and new.sampling_params.prompt_logprobs is not None:
                stop = new.num_computed_tokens + scheduled.num_scheduled_tokens[new.req_id]
                self._scoring[new.req_id] = (entry.step, entry.step if stop >= new.prompt_len else _OPEN)
        cached = scheduled.scheduled_cached_reqs
        for request_id, drawn in zip(cached.req_ids, cached.num_output_tokens, strict=True):
            first, last = self._scoring.get(request_id, (0, 0))
            if last == _OPEN and drawn > 0:
                self._scoring[request_id] = (first, entry.step)

    def _without_scoring(self, limit: int) -> int:
        """The last step up to `limit` that lies in nobody's scored prefill."""
        self._scoring = {name: span for name, span in self._scoring.items() if span[1] > self.base.step}
        for first, last in sorted(self._scoring.values(), reverse=True):
            if first <= limit < last:
                limit = first - 1
        return limit

    def _writes(self, scheduled: "SchedulerOutput") -> Iterator[SlotRange]:
        """The slots of a step; new blocks begin a new generation."""
        size = self._block_size
        starts: dict[str, int] = {}
        for request_id in scheduled.finished_req_ids:
            self._tables.pop(request_id, None)
        for new in scheduled.scheduled_new_reqs:
            (blocks,) = new.block_ids
            self._tables[new.req_id] = list(blocks)
            starts[new.req_id] = new.num_computed_tokens
            self._hand_out(blocks[new.num_computed_tokens // size :])
        cached = scheduled.scheduled_cached_reqs
        for request_id, added, start in zip(
            cached.req_ids, cached.new_block_ids, cached.num_computed_tokens, strict=True
        ):
            starts[request_id] = start
            blocks = added[0] if added is not None else []
            if request_id in cached.resumed_req_ids:
                self._tables[request_id] = list(blocks)
                self._hand_out(blocks[start // size :])
            else:
                self._tables[request_id] += blocks
                self._hand_out(blocks)
        copied = {copy.dst_block_id for copy in scheduled.kv_cache_block_copies or ()}
        for request_id, count in scheduled.num_scheduled_tokens.items():
            yield from self._slots(self._tables[request_id], starts[request_id], starts[request_id] + count, copied)

    def _slots(self, blocks: Sequence[int], start: int, stop: int, copied: set[int]) -> Iterator[SlotRange]:
        size = self._block_size
        for index in range(start // size, -(-stop // size)):
            block = blocks[index]
            if block != _NULL_BLOCK:
                # A block that was begun as a copy of another has that one's slots in front.
                first = 0 if block in copied else max(start - index * size, 0)
                last = min(stop - index * size, size)
                yield SlotRange(block, self._generations[block], block, first, last)

    def _hand_out(self, blocks: Iterable[int]) -> None:
        for block in blocks:
            self._generations[block] = (self._generations[block] + 1) & 0xFFFFFFFF

    def _apply(self, entry: LoggedStep) -> None:
        """What the model runners made of a step, done to the base."""
        scheduled, requests = entry.scheduled, self.base.requests
        for request_id in scheduled.finished_req_ids:
            requests.pop(request_id, None)
        for new in scheduled.scheduled_new_reqs:
            requests[new.req_id] = RequestState(new, list(new.block_ids[0]), new.num_computed_tokens)
        cached = scheduled.scheduled_cached_reqs
        for index, request_id in enumerate(cached.req_ids):
            request = requests[request_id]
            request.num_computed = cached.num_computed_tokens[index]
            del request.outputs[cached.num_output_tokens[index] :]
            added = cached.new_block_ids[index]
            if request_id in cached.resumed_req_ids:
                request.blocks = list(added[0]) if added is not None else []
            elif added is not None:
                request.blocks += added[0]
        for request_id, count in scheduled.num_scheduled_tokens.items():
            requests[request_id].num_computed += count
        for slots in entry.writes:
            before = self._filled.get(slots.block)
            start = before.start if before is not None and before.generation == slots.generation else slots.start
            self._filled[slots.block] = slots.part(min(start, slots.start), slots.stop)
        if entry.output is not None:
            self.base.batch = list(entry.output.req_ids)
            for request_id, tokens in zip(entry.output.req_ids, entry.output.sampled_token_ids, strict=False):
                if request_id in requests:
                    requests[request_id].outputs += tokens
        self.base.step, self.base.ordinal = entry.step, entry.ordinal
