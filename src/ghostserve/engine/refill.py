"""One recovery's refill: what the lost ranks rebuild, what all ranks recompute meanwhile, what is left for after."""

import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import msgspec

from ghostserve.engine import messages as msg
from ghostserve.parity.ranges import SlotRange, num_slots
from ghostserve.recovery.hybrid import Part, Split

__all__ = ["Refill", "Share"]

Send = Callable[[int, msgspec.Struct], object]


@dataclass(frozen=True)
class Share:
    """A part to recompute, as the ranks take it."""

    part: Part
    again: msg.SequencePart
    ranges: tuple[SlotRange, ...]


@dataclass
class Refill:
    """Bookkeeping of one epoch's refill, without waiting: `start` it, tell it what was answered until `over`.

    While the targets rebuild, all ranks run the shares one after another. What some rank could not reproduce, and what
    of the same request comes after it, is rebuilt at the end.
    """

    epoch: int
    lost_ranks: tuple[int, ...]
    targets: tuple[int, ...]
    """Workers that took a lost rank."""
    members: Mapping[int, int]
    """rank -> worker, of all ranks."""
    rebuild: tuple[SlotRange, ...]
    shares: deque[Share]
    split: Split
    send: Send
    recomputed: int = 0
    """Slots that came out with the recorded bits."""
    tried: int = 0
    seconds: float | None = None
    """From the start to the end, once over."""
    rebuild_seconds: float = 0.0
    rebuilt_slots: int = 0
    recompute_seconds: float = 0.0
    _began: float = 0.0
    _sent: float = 0.0
    _redone: bool = False
    _number: int = 0
    _answers: dict[int, bool] = field(default_factory=dict)
    _rebuilding: set[int] = field(default_factory=set)
    _again: list[SlotRange] = field(default_factory=list)

    def start(self) -> None:
        self._began = time.monotonic()
        self._send_rebuild(self.rebuild, beside=bool(self.shares))
        self._next_share()

    def rebuilt(self, worker: int) -> None:
        """A target's `RebuildDone` has come."""
        self._rebuilding.discard(worker)
        if not self._rebuilding:
            self.rebuild_seconds += time.monotonic() - self._sent
        self._go_on()

    def ran(self, worker: int, answer: msg.Recomputed) -> None:
        """A rank's `Recomputed` has come; what is of an earlier share is dropped."""
        if not self.shares or answer.number != self._number:
            return
        self._answers[worker] = answer.accepted
        if len(self._answers) < len(self.members):
            return
        share, good = self.shares.popleft(), all(self._answers.values())
        self.tried += num_slots(share.ranges)
        if good:
            self.recomputed += num_slots(share.ranges)
        else:
            later = [s for s in self.shares if s.part.request_id == share.part.request_id]
            self._again += [r for s in (share, *later) for r in s.ranges]
            self.shares = deque(s for s in self.shares if s.part.request_id != share.part.request_id)
        if not self.shares:
            self.recompute_seconds = time.monotonic() - self._began
        self._next_share()
        self._go_on()

    @property
    def over(self) -> bool:
        return self.seconds is not None

    @property
    def rejected(self) -> int:
        """Slots that were recomputed to other bits, or not at all for that reason."""
        return num_slots(self._again)

    def _go_on(self) -> None:
        if self.shares or self._rebuilding or self.over:
            return
        if self._again and not self._redone:
            self._redone = True
            self._send_rebuild(tuple(self._again), beside=False)
            return
        self.seconds = time.monotonic() - self._began

    def _send_rebuild(self, ranges: tuple[SlotRange, ...], *, beside: bool) -> None:
        self._sent = time.monotonic()
        self.rebuilt_slots += num_slots(ranges)
        self._rebuilding = set(self.targets)
        for worker in self.targets:
            self.send(worker, msg.Rebuild(self.epoch, self.lost_ranks, ranges, beside))

    def _next_share(self) -> None:
        if not self.shares:
            return
        self._number += 1
        self._answers = {}
        share = self.shares[0]
        for worker in self.members.values():
            self.send(worker, msg.Recompute(self.epoch, self._number, self.lost_ranks, share.again, share.ranges))
