"""The coordinator's book of what is written, flushed and committed."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from ghostserve.checkpoint.tasks import FlushTask
from ghostserve.errors import ConfigError
from ghostserve.parity.ranges import SlotRange, merge, num_slots, split

__all__ = ["CheckpointLedger", "EncoderPolicy"]

EncoderPolicy = Literal["round_robin", "striped"]


@dataclass
class _Pending:
    """A request's slots that are written and not yet part of a task, and the steps that wrote them."""

    ranges: list[SlotRange] = field(default_factory=list)
    steps: set[int] = field(default_factory=set)
    slots: int = 0
    urgent: bool = False


@dataclass(frozen=True)
class _Sent:
    task: FlushTask
    steps: frozenset[int]


class CheckpointLedger:
    """Decides which slots are flushed when and by whom, and knows the watermark; pure, without I/O.

    For each step in order: `begin`, `wrote` for each protected request, `due`. A task stays outstanding until
    it is acked, so after a recovery the steps that are replayed find theirs with `outstanding_after` and send
    them again.
    """

    def __init__(
        self,
        num_ranks: int,
        flush_tokens: int = 1,
        max_unprotected_tokens: int = 1024,
        encoder: EncoderPolicy = "round_robin",
    ) -> None:
        """`flush_tokens`: decode tokens of a request between two flushes, 1 = every step.

        More than `max_unprotected_tokens` slots that wait, over all requests, are flushed at once. Raises
        `ConfigError` for numbers below 1 or another `encoder`.
        """
        numbers = {
            "num_ranks": num_ranks,
            "flush_tokens": flush_tokens,
            "max_unprotected_tokens": max_unprotected_tokens,
        }
        for name, value in numbers.items():
            if value < 1:
                raise ConfigError(f"{name} is {value}, it must be at least 1")
        if encoder not in ("round_robin", "striped"):
            raise ConfigError(f"encoder is {encoder!r}, it must be 'round_robin' or 'striped'")
        self._num_ranks, self._encoder = num_ranks, encoder
        self._flush_tokens, self._max_unprotected = flush_tokens, max_unprotected_tokens
        self._pending: dict[str, _Pending] = {}
        self._sent: dict[int, _Sent] = {}
        # Per step: how many pending entries and tasks hold slots that it wrote. Steps enter in ascending
        # order and leave when nothing holds them, so the first key is the oldest step that is not committed.
        self._open: dict[int, int] = {}
        self._reads: Counter[int] = Counter()
        self._begun = self._closed = -1
        self._chunks = self._next_task = 0

    def begin(self, step: int) -> None:
        """Announce the next step, counted from 0; `ValueError` unless the one before is closed and lower."""
        if self._begun != self._closed or step <= self._begun:
            raise ValueError(f"step {step} can't begin: {self._begun} has begun and {self._closed} is closed")
        self._begun = step

    def wrote(self, step: int, request_id: str, ranges: Iterable[SlotRange], prefill: bool) -> None:
        """`step`, the one under way, writes these slots; those of a prefill are due with it."""
        if step != self._begun or step == self._closed:
            raise ValueError(f"step {step} is not under way: {self._begun} has begun and {self._closed} is closed")
        added = merge(ranges)
        if not added:
            return
        pending = self._pending.setdefault(request_id, _Pending())
        pending.ranges += added
        pending.slots += num_slots(added)
        pending.urgent |= prefill
        if step not in pending.steps:
            pending.steps.add(step)
            self._hold((step,))

    def due(self, step: int, everything: bool = False) -> list[FlushTask]:
        """Close `step`; the tasks to run right after it. What is due now forms one chunk.

        `everything`: all that waits is due.
        """
        if step != self._begun or step == self._closed:
            raise ValueError(f"step {step} is not under way: {self._begun} has begun and {self._closed} is closed")
        self._closed = step
        everything |= self.waiting_tokens > self._max_unprotected
        ready = [name for name, p in self._pending.items() if everything or p.urgent or p.slots >= self._flush_tokens]
        if not ready:
            return []
        entries = [self._pending.pop(name) for name in ready]
        ranges = merge(r for entry in entries for r in entry.ranges)
        steps = frozenset[int]().union(*(entry.steps for entry in entries))
        tasks = self._chunk(step, ranges)
        for task in tasks:
            self._sent[task.task_id] = _Sent(task, steps)
            self._reads.update({r.block for r in task.ranges})
            self._hold(steps)
        # After the tasks hold them: a step must not look committed in between.
        for entry in entries:
            self._let_go(entry.steps)
        return tasks

    def acked(self, task_id: int) -> bool:
        """The task is committed. False if it was not outstanding: a second ack changes nothing."""
        sent = self._sent.pop(task_id, None)
        if sent is None:
            return False
        self._let_go(sent.steps)
        self._reads -= Counter({r.block for r in sent.task.ranges})
        return True

    def settle(self, is_committed: Callable[[SlotRange], bool]) -> tuple[int, ...]:
        """At recovery: ack the tasks that the store shows wholly committed, and give their ids."""
        done = [t.task_id for t in self.outstanding if all(is_committed(r) for r in t.ranges)]
        for task_id in done:
            self.acked(task_id)
        return tuple(done)

    def reset(self) -> None:
        """Nothing written can be rebuilt: forget it all; the watermark is then the last closed step."""
        self._pending.clear()
        self._sent.clear()
        self._open.clear()
        self._reads.clear()

    def drop(self, request_id: str) -> None:
        """The request is over or unprotected: forget its pending slots; its tasks stay outstanding."""
        pending = self._pending.pop(request_id, None)
        if pending is not None:
            self._let_go(pending.steps)

    @property
    def watermark(self) -> int:
        """The last step such that all slots written up to it are committed; -1 before the first."""
        oldest = next(iter(self._open), None)
        return self._closed if oldest is None else min(oldest - 1, self._closed)

    @property
    def outstanding(self) -> tuple[FlushTask, ...]:
        """Tasks that were handed out and not acked, in their order."""
        return tuple(sent.task for sent in self._sent.values())

    @property
    def open_slots(self) -> tuple[SlotRange, ...]:
        """What is written and not known to be committed: slots that wait, and those of outstanding tasks."""
        waiting = [r for pending in self._pending.values() for r in pending.ranges]
        return (*waiting, *(r for sent in self._sent.values() for r in sent.task.ranges))

    def outstanding_after(self, step: int) -> tuple[FlushTask, ...]:
        """The outstanding tasks that `step` handed out: to be sent again right after its replay."""
        return tuple(task for task in self.outstanding if task.step == step)

    @property
    def waiting_tokens(self) -> int:
        """Slots that are written and not yet part of a task."""
        return sum(p.slots for p in self._pending.values())

    @property
    def unprotected_tokens(self) -> int:
        """Slots that are written and not committed."""
        return self.waiting_tokens + sum(num_slots(t.ranges) for t in self.outstanding)

    def is_read(self, block: int) -> bool:
        """True while an outstanding task reads `block`: it must not be handed out to another request."""
        return self._reads[block] > 0

    def _chunk(self, step: int, ranges: Sequence[SlotRange]) -> list[FlushTask]:
        first, self._chunks = self._chunks, self._chunks + 1
        parts = [tuple(ranges)] if self._encoder == "round_robin" else split(ranges, self._num_ranks)
        tasks = [
            FlushTask(self._next_task + i, step, (first + i) % self._num_ranks, part) for i, part in enumerate(parts)
        ]
        self._next_task += len(tasks)
        return tasks

    def _hold(self, steps: Iterable[int]) -> None:
        for step in steps:
            self._open[step] = self._open.get(step, 0) + 1

    def _let_go(self, steps: Iterable[int]) -> None:
        for step in steps:
            self._open[step] -= 1
            if self._open[step] == 0:
                del self._open[step]
