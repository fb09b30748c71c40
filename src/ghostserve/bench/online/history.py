"""What one engine's coordinator told while it served, and what follows from it: pure functions of that history."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from ghostserve.status import RecoveryRecord

__all__ = ["History", "Kill", "Share", "Step", "Struck", "busy_seconds", "recovery_seconds", "struck", "useful_seconds"]


@dataclass(frozen=True)
class Share:
    """Tokens `start`..`stop`-1 of a request that a step computed; `drew`: it ended in a new token for the client."""

    request_id: str
    start: int
    stop: int
    drew: bool


@dataclass(frozen=True)
class Step:
    """One step whose answer counted, from its last sending to its answer (monotonic seconds)."""

    sent: float
    answered: float
    shares: tuple[Share, ...]


@dataclass(frozen=True)
class Kill:
    at: float
    rank: int


@dataclass
class History:
    """In the order of time, by the coordinator's clock: steps, kills, noticed deaths, (moment, record) of resumes."""

    steps: list[Step] = field(default_factory=list)
    kills: list[Kill] = field(default_factory=list)
    lost: list[float] = field(default_factory=list)
    resumed: list[tuple[float, RecoveryRecord]] = field(default_factory=list)


@dataclass(frozen=True)
class Struck:
    """A request that had KV when a rank was killed: seconds from the kill until it had gone beyond where it was.

    `streaming`: it had drawn a token before, so its client saw this as a pause.
    """

    request_id: str
    seconds: float
    streaming: bool


def busy_seconds(spans: Iterable[tuple[float, float]]) -> float:
    """The time that the union of `spans` (begin, end) covers."""
    total, until = 0.0, float("-inf")
    for begin, end in sorted(spans):
        total += max(0.0, end - max(begin, until))
        until = max(until, end)
    return total


def useful_seconds(steps: Sequence[Step]) -> float:
    """Time of steps that went into tokens computed for the first time.

    A step's time is shared evenly over its tokens. Tokens whose KV had been computed before, and was lost, are no
    use; nor is a step that a failure cut off, which is in no history, nor any time between steps.
    """
    reached: dict[str, int] = {}
    total = 0.0
    for step in steps:
        tokens = sum(share.stop - share.start for share in step.shares)
        fresh = sum(max(0, share.stop - max(share.start, reached.get(share.request_id, 0))) for share in step.shares)
        for share in step.shares:
            reached[share.request_id] = max(reached.get(share.request_id, 0), share.stop)
        if tokens:
            total += (step.answered - step.sent) * fresh / tokens
    return total


def struck(history: History, kill: Kill) -> list[Struck]:
    """Every request that was partly computed at `kill` and had to go on after it."""
    noticed = _noticed(history, kill)
    if noticed is None:
        return []
    reached: dict[str, int] = {}
    streaming: set[str] = set()
    found: dict[str, Struck] = {}
    for step in history.steps:
        for share in step.shares:
            name = share.request_id
            # Until the death is noticed an answer may still come in of a step that was done before the kill.
            if step.answered < noticed:
                reached[name] = max(reached.get(name, 0), share.stop)
                if share.drew:
                    streaming.add(name)
            elif name in reached and name not in found and share.stop > reached[name]:
                found[name] = Struck(name, step.answered - kill.at, name in streaming)
    return list(found.values())


def recovery_seconds(history: History, kill: Kill) -> float | None:
    """From `kill` until the group served again and every struck request had gone beyond where it was.

    None if no recovery followed.
    """
    noticed = _noticed(history, kill)
    resumed = next((moment for moment, _ in history.resumed if noticed is not None and moment >= noticed), None)
    if resumed is None:
        return None
    return max([resumed - kill.at, *(one.seconds for one in struck(history, kill))])


def _noticed(history: History, kill: Kill) -> float | None:
    return next((moment for moment in history.lost if moment >= kill.at), None)
