"""What goes into and comes out of the recovery state machine."""

from dataclasses import dataclass, field

__all__ = [
    "Command",
    "CommunicatorBroke",
    "Event",
    "GiveUp",
    "Join",
    "Joined",
    "Kill",
    "Load",
    "Loaded",
    "Probe",
    "Probed",
    "Rebuild",
    "Rebuilt",
    "Release",
    "Released",
    "Replay",
    "Replayed",
    "Resume",
    "Spawn",
    "StepOverdue",
    "Tick",
    "Timeline",
    "Wipe",
    "WorkerLost",
    "WorkerReady",
]


@dataclass
class Timeline:
    """One recovery as it happened: who was lost, why, and when each phase ended (seconds of the machine's clock)."""

    started: float
    reason: str
    lost_ranks: tuple[int, ...] = ()
    marks: list[tuple[str, float]] = field(default_factory=list)

    def mark(self, phase: str, now: float) -> None:
        self.marks.append((phase, now))

    @property
    def seconds(self) -> float:
        return self.marks[-1][1] - self.started if self.marks else 0.0


# ---- events: what happened


@dataclass(frozen=True)
class WorkerReady:
    """A spawned worker has done its imports and can take a rank."""

    worker: int


@dataclass(frozen=True)
class WorkerLost:
    """A worker's process ended, or the worker itself said that it can't go on."""

    worker: int
    reason: str


@dataclass(frozen=True)
class CommunicatorBroke:
    """A worker's collective failed in this epoch: somebody is gone, but it is not the one who says so."""

    worker: int
    epoch: int
    reason: str


@dataclass(frozen=True)
class StepOverdue:
    """No answer to the running step within the step deadline."""

    step: int


@dataclass(frozen=True)
class Probed:
    """A worker answered a probe; `waiting`: in a collective, or for the next message, so it holds nobody up."""

    worker: int
    waiting: bool


@dataclass(frozen=True)
class Released:
    worker: int
    epoch: int


@dataclass(frozen=True)
class Loaded:
    worker: int
    rank: int


@dataclass(frozen=True)
class Joined:
    worker: int
    epoch: int


@dataclass(frozen=True)
class Rebuilt:
    """The lost ranks' KV is whole again (or given up, request by request)."""

    worker: int
    epoch: int


@dataclass(frozen=True)
class Replayed:
    epoch: int


@dataclass(frozen=True)
class Tick:
    """Time has passed."""


Event = (
    WorkerReady
    | WorkerLost
    | CommunicatorBroke
    | StepOverdue
    | Probed
    | Released
    | Loaded
    | Joined
    | Rebuilt
    | Replayed
    | Tick
)

# ---- commands: what to do


@dataclass(frozen=True)
class Kill:
    """End this process for certain (SIGKILL) and reap it."""

    worker: int
    reason: str


@dataclass(frozen=True)
class Spawn:
    """Start one more worker process; `cold` if a rank is waiting for it."""

    cold: bool


@dataclass(frozen=True)
class Release:
    """Refuse everything of older epochs from this worker, and have it leave its group; it answers with `Released`."""

    worker: int
    epoch: int


@dataclass(frozen=True)
class Wipe:
    """The rank's device memory is gone with its process: make sure that nobody reads what may be left of it."""

    rank: int


@dataclass(frozen=True)
class Load:
    worker: int
    rank: int


@dataclass(frozen=True)
class Join:
    """Rendezvous of `members` (worker of rank 0, of rank 1, ...) under `epoch`."""

    epoch: int
    members: tuple[int, ...]


@dataclass(frozen=True)
class Rebuild:
    """Plan, then have `targets` (worker, rank) refill what `lost_ranks` lost; each answers with `Rebuilt`."""

    epoch: int
    lost_ranks: tuple[int, ...]
    targets: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Replay:
    epoch: int


@dataclass(frozen=True)
class Resume:
    epoch: int
    timeline: Timeline


@dataclass(frozen=True)
class Probe:
    worker: int


@dataclass(frozen=True)
class GiveUp:
    reason: str


Command = Kill | Spawn | Release | Wipe | Load | Join | Rebuild | Replay | Resume | Probe | GiveUp
