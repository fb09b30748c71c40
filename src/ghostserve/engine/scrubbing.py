"""The coordinator's part of scrubbing: which slots are verified when and by whom, and what a finding leads to.

Without I/O; the clock is an argument. A worker only reads and compares: it knows nothing of requests. Whether a slot
was its request's all the time, and should have been committed, is decided here, after the reading.
"""

from collections import Counter, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from ghostserve.checkpoint.tasks import FlushTask
from ghostserve.engine.messages import Scrub, Scrubbed
from ghostserve.engine.serving import Serving
from ghostserve.parity.ranges import SlotRange, num_slots, singles, without

__all__ = ["Finding", "Scrubbing"]

PERIOD = 0.25
"""Seconds between two requests to a worker."""
_BURST = 1.0
"""Seconds' worth of bytes that may be made up for at once, after waiting for an answer."""


@dataclass(frozen=True)
class Finding:
    """Silent corruption. `where`: "rank 1", "parity shard 3" or "record"; `slot`: one slot of `request_id`."""

    where: str
    slot: SlotRange
    request_id: str
    live: bool
    """A rank's KV is wrong, which the model reads: its request has to be recomputed. Else the slot is flushed again."""

    @property
    def remedy(self) -> str:
        return f"request {self.request_id} is recomputed" if self.live else "flushed again"


class Scrubbing:
    """Walks over the committed slots of all running requests, again and again; ranks take turns in reading them."""

    def __init__(
        self,
        serving: Serving,
        *,
        rate: int,
        slot_bytes: int,
        num_ranks: int,
        is_committed: Callable[[SlotRange], bool],
    ) -> None:
        """`rate`: bytes a second, 0: off. `slot_bytes`: read for one slot, over all ranks and its parity."""
        self._serving, self._is_committed = serving, is_committed
        self._rate, self._slot_bytes, self._num_ranks = rate, slot_bytes, num_ranks
        self._allowance, self._at, self._due = 0.0, 0.0, 0.0
        self._under_way: tuple[int, int] | None = None
        self._number = 0
        self._flushed_since: list[SlotRange] = []
        self._refused: list[SlotRange] = []
        self._queue: deque[str] = deque()
        self._token = 0
        self._seen = False
        names = ("scrubbed_slots", "scrubbed_bytes", "scrub_passes", "scrub_withdrawn_slots", "scrub_corrupt_slots")
        self.counts: Counter[str] = Counter(dict.fromkeys(names if rate else (), 0))
        """For the status."""

    def next(self, epoch: int, now: float) -> tuple[int, Scrub] | None:
        """The rank to ask, and what; None while one is asked in this epoch, or the rate does not allow more."""
        if not self._rate:
            return None
        most = max(self._rate * _BURST, float(self._slot_bytes))
        self._allowance = min(self._allowance + self._rate * (now - self._at), most)
        self._at = now
        busy = self._under_way is not None and self._under_way[0] == epoch
        if busy or now < self._due or self._allowance < self._slot_bytes:
            return None
        self._due = now + PERIOD
        ranges = self._take(int(self._allowance // self._slot_bytes))
        if not ranges:
            return None
        self._allowance -= num_slots(ranges) * self._slot_bytes
        self._number += 1
        self._under_way = (epoch, self._number)
        self._flushed_since.clear()
        return self._number % self._num_ranks, Scrub(epoch, self._number, tuple(ranges))

    def flushing(self, tasks: Iterable[FlushTask]) -> None:
        """These are sent out: for a moment their slots are not committed, and that is as it should be."""
        if self._under_way is not None:
            self._flushed_since += (r for task in tasks for r in task.ranges)

    def refused(self, task: FlushTask) -> None:
        """The store's medium did not take this task's slots: that they are not committed is known."""
        self._refused += task.ranges

    def heard(self, report: Scrubbed) -> list[Finding]:
        """What of a worker's report is corruption, and not explained by what happened since it was asked for."""
        if self._under_way is None or report.number != self._under_way[1]:
            return []
        self._under_way = None
        self.counts["scrubbed_slots"] += report.slots
        self.counts["scrubbed_bytes"] += report.bytes_read
        self.counts["scrub_withdrawn_slots"] += report.withdrawn
        suspects = [
            (f"parity shard {f.shard}" if f.rank is None else f"rank {f.rank}", f.slots, f.rank is not None)
            for f in report.faults
        ]
        suspects += [("record", slot, False) for slot in singles(report.uncommitted) if not self._is_committed(slot)]
        findings = []
        for where, slot, live in suspects:
            owner = self._serving.owner(slot)
            if owner is None or not without([slot], (*self._flushed_since, *self._refused)):
                self.counts["scrub_withdrawn_slots"] += 1
            else:
                findings.append(Finding(where, slot, owner.request_id, live))
        self.counts["scrub_corrupt_slots"] += len({f.slot for f in findings})
        return findings

    def _take(self, slots: int) -> list[SlotRange]:
        """The next committed ones of about `slots` slots; a new pass begins when all requests have had their turn."""
        ranges: list[SlotRange] = []
        turned = False
        requests = self._serving.scheduler.requests
        while slots > 0:
            if not self._queue:
                if turned:
                    break
                turned = True
                self._begin_pass()
                continue
            request = requests.get(self._queue[0])
            count = 0 if request is None else min(slots, request.num_computed - self._token)
            if request is None or count <= 0:
                self._queue.popleft()
                self._token = 0
                continue
            ranges += self._serving.committed(request, self._token, self._token + count)
            self._token += count
            slots -= count
        self._seen |= bool(ranges)
        return ranges

    def _begin_pass(self) -> None:
        self.counts["scrub_passes"] += self._seen
        self._seen, self._token = False, 0
        self._queue.extend(request.request_id for request in self._serving.scheduler.running)
        self._refused = [r for r in self._refused if self._serving.owner(r) is not None]
