"""What goes wrong in a simulated run, and when: a pure function of the seed."""

import random
from dataclasses import dataclass

from ghostserve.faultsim.scenario import Scenario

__all__ = ["Delay", "Fault", "FlipKV", "FlipStore", "Kill", "KillInPhase", "Lose", "Slow", "Strike", "make_faults"]


@dataclass(frozen=True)
class Strike:
    """The `nth` time that any worker comes to `point`, it dies, hangs, or (in a flush) dies in the middle of a write.

    `how`: "die", "silent" (hears nothing any more), "busy" (still answers pings), "tear" (dies when the share
    `cut`, 0 to 1, of its parity write is done). `others`: so many further members die with it.
    """

    point: str
    nth: int
    how: str
    others: int = 0
    cut: float = 0.0


@dataclass(frozen=True)
class Kill:
    """At a moment (seconds) `count` members, or standbys, die at once."""

    at: float
    count: int
    standby: bool = False


@dataclass(frozen=True)
class KillInPhase:
    """The `nth` time that recovery enters `phase`, `count` members die `delay` seconds later."""

    phase: str
    nth: int
    delay: float
    count: int


@dataclass(frozen=True)
class Lose:
    """The `nth` message of this kind never arrives."""

    message: str
    nth: int


@dataclass(frozen=True)
class Delay:
    """The `nth` message of this kind, and all behind it on its channel, come `seconds` late."""

    message: str
    nth: int
    seconds: float


@dataclass(frozen=True)
class Slow:
    """From a moment on, for `seconds`, a rank takes `factor` times as long for each step and flush."""

    at: float
    rank: int
    factor: float
    seconds: float


@dataclass(frozen=True)
class FlipStore:
    """At a moment one bit flips in the parity store's `part` ("records" with their checksums, or "payload").

    `live`: of a slot that is committed and somebody's; else anywhere.
    """

    at: float
    part: str
    place: float
    live: bool


@dataclass(frozen=True)
class FlipKV:
    """With the `nth` request to rebuild, bits flip in a survivor's committed KV: before anyone reads it."""

    nth: int
    place: float


Fault = Strike | Kill | KillInPhase | Lose | Delay | Slow | FlipStore | FlipKV

# Where a worker can be struck, and up to which occurrence that is worth trying.
_POINTS = {
    "start": 8,
    "load.begin": 8,
    "join.begin": 12,
    "release.end": 6,
    "rebuild.begin": 3,
    "rebuild.end": 3,
    "step.begin": 90,
    "step.end": 90,
    "flush.begin": 30,
    "flush.encoded": 30,
    "scrub.begin": 6,
}
_MESSAGES = {
    "RunStep": 90, "StepDone": 30, "TasksDone": 30, "Release": 6, "Released": 6, "Load": 6, "Loaded": 6,
    "Join": 10, "Joined": 10, "Rebuild": 3, "RebuildDone": 3, "Hello": 6, "Ping": 4, "Pong": 4,
}  # fmt: skip
_PHASES = {"releasing": 2, "rejoining": 3, "rebuilding": 2, "replaying": 3}
_STORM = (0.5, 2.5)
"""Seconds between which the timed faults fall: the first group serves by then, and most requests run."""


def make_faults(seed: int, scenario: Scenario) -> tuple[Fault, ...]:
    """The faults of a seed: mostly a few, sometimes none."""
    rng = random.Random(f"faults {seed}")
    return tuple(_fault(rng, scenario) for _ in range(rng.choice((0, 1, 2, 2, 3, 4, 5, 6))))


def _fault(rng: random.Random, scenario: Scenario) -> Fault:
    kinds = ["strike", "strike", "strike", "tear", "kill", "kill", "phase", "phase", "message", "message", "slow"]
    if scenario.corruption:
        kinds += ["store", "store", "kv", "kv", "kv"]
    match rng.choice(kinds):
        case "strike":
            point = rng.choice(list(_POINTS))
            how = rng.choice(("die", "die", "die", "silent", "busy"))
            others = rng.choice((0, 0, 0, 1, 1, 2))
            return Strike(point, rng.randint(1, _POINTS[point]), how, others)
        case "tear":
            return Strike("flush.encoded", rng.randint(1, _POINTS["flush.encoded"]), "tear", 0, rng.random())
        case "kill":
            return Kill(rng.uniform(*_STORM), _count(rng, scenario), standby=rng.random() < 0.2)
        case "phase":
            phase = rng.choice(list(_PHASES))
            count = _count(rng, scenario)
            return KillInPhase(phase, rng.randint(1, _PHASES[phase]), rng.choice((0.0, rng.uniform(0, 0.1))), count)
        case "message":
            kind = rng.choice(list(_MESSAGES))
            nth = rng.randint(1, _MESSAGES[kind])
            return Lose(kind, nth) if rng.random() < 0.5 else Delay(kind, nth, rng.uniform(0.02, 3.0))
        case "slow":
            at, rank = rng.uniform(*_STORM), rng.randrange(scenario.ranks)
            return Slow(at, rank, rng.uniform(3.0, 150.0), rng.uniform(0.1, 2.0))
        case "store":
            part = rng.choice(("records", "payload"))
            return FlipStore(rng.uniform(*_STORM), part, rng.random(), live=rng.random() < 0.7)
        case _:
            return FlipKV(rng.choice((1, 1, 2)), rng.random())


def _count(rng: random.Random, scenario: Scenario) -> int:
    """How many die at once: mostly what parity covers, sometimes one more."""
    return rng.randint(1, min(scenario.ranks, scenario.losses_covered + (rng.random() < 0.3)))
