"""What coordinator and workers say to each other: msgspec structs, tagged, over one socket a worker.

Every message that belongs to a membership of the group carries its epoch; the receiver drops what is of another.
"""

import msgspec

from ghostserve.checkpoint.tasks import FlushTask
from ghostserve.parity.ranges import SlotRange
from ghostserve.parity.reader import Fault
from ghostserve.workers.messages import (
    Hello,
    Load,
    Ping,
    Pong,
    Release,
    Released,
    Shutdown,
    TasksDone,
    WorkerFailed,
)

__all__ = [
    "Attach",
    "Attached",
    "Draw",
    "FlushAbandoned",
    "FromWorker",
    "Hello",
    "Join",
    "Joined",
    "Load",
    "Loaded",
    "Ping",
    "Poison",
    "Pong",
    "Rebuild",
    "RebuildDone",
    "Recompute",
    "Recomputed",
    "Release",
    "Released",
    "RunStep",
    "Sampled",
    "Scrub",
    "Scrubbed",
    "SequencePart",
    "Shutdown",
    "StepDone",
    "StepPlan",
    "TasksDone",
    "ToWorker",
    "Warm",
    "WorkerFailed",
]


class Draw(msgspec.Struct, frozen=True, array_like=True):
    """How to choose the next token of one sequence; `counter` numbers the draws of the request."""

    temperature: float
    top_p: float
    top_k: int
    seed: int
    counter: int
    logprobs: int | None


class SequencePart(msgspec.Struct, frozen=True, array_like=True):
    """One request's share of a step: `token_ids` at positions `start`.., stored in the slots of `blocks`."""

    request_id: str
    token_ids: tuple[int, ...]
    start: int
    blocks: tuple[int, ...]
    draw: Draw | None  # None: a prefill chunk that is not the prompt's last


class StepPlan(msgspec.Struct, frozen=True, array_like=True):
    """All that one step needs. Running it again on the same KV gives the same bits: that is replay."""

    step: int
    parts: tuple[SequencePart, ...]
    flush: tuple[FlushTask, ...] = ()


class Sampled(msgspec.Struct, frozen=True, array_like=True):
    """The token drawn for one part of a step, with logprobs where they were asked for."""

    request_id: str
    token_id: int
    logprob: float | None
    top_logprobs: tuple[tuple[int, float], ...]


class Join(msgspec.Struct, frozen=True, tag=True):
    """Rendezvous of all ranks under `epoch`; only they know `secret`."""

    epoch: int
    store_port: int
    secret: str


class Attach(msgspec.Struct, frozen=True, tag=True):
    """Everyone has joined: map the ranks' caches. `handles` in rank order, as `Joined` brought them."""

    epoch: int
    handles: tuple[bytes, ...]


class RunStep(msgspec.Struct, frozen=True, tag=True):
    epoch: int
    plan: StepPlan


class Rebuild(msgspec.Struct, frozen=True, tag=True):
    epoch: int
    lost_ranks: tuple[int, ...]
    ranges: tuple[SlotRange, ...]
    beside: bool = False
    """On a thread of its own, as the rank recomputes meanwhile."""


class Recompute(msgspec.Struct, frozen=True, tag=True):
    """Every rank: run `part` alone; its slots are `ranges`. What does not match the checksums does not count."""

    epoch: int
    number: int
    lost_ranks: tuple[int, ...]
    part: SequencePart
    ranges: tuple[SlotRange, ...]


class Scrub(msgspec.Struct, frozen=True, tag=True):
    """One rank, when it has no flush to do: verify these committed slots, on all ranks and in the store."""

    epoch: int
    number: int
    ranges: tuple[SlotRange, ...]


class Warm(msgspec.Struct, frozen=True, tag=True):
    """A standby has done all that can be done before it has a rank."""


class Poison(msgspec.Struct, frozen=True, tag=True):
    """NaN in these blocks of the worker's own cache: for the undisturbed run, where nothing may be left over."""

    blocks: tuple[int, ...]


ToWorker = Load | Join | Attach | RunStep | Release | Rebuild | Recompute | Scrub | Poison | Ping | Shutdown


class Loaded(msgspec.Struct, frozen=True, tag=True):
    rank: int
    weight_bytes: int


class Joined(msgspec.Struct, frozen=True, tag=True):
    """`handle`: by which peers map this rank's cache; empty where they need not."""

    epoch: int
    handle: bytes = b""


class Attached(msgspec.Struct, frozen=True, tag=True):
    epoch: int


class StepDone(msgspec.Struct, frozen=True, tag=True):
    epoch: int
    step: int
    sampled: tuple[Sampled, ...]


class FlushAbandoned(msgspec.Struct, frozen=True, tag=True):
    """The store's medium refused the task's slots: they stay unprotected, and nobody waits for them."""

    epoch: int
    task_id: int
    error: str


class RebuildDone(msgspec.Struct, frozen=True, tag=True):
    epoch: int
    rank: int
    slots: int
    bytes_rebuilt: int
    bytes_copied: int
    bytes_read: int
    failed: tuple[SlotRange, ...]
    corrected: tuple[Fault, ...]
    reasons: tuple[str, ...]
    damaged: tuple[Fault, ...] = ()


class Recomputed(msgspec.Struct, frozen=True, tag=True):
    """`accepted`: this rank's slots came out with the recorded bits."""

    epoch: int
    number: int
    accepted: bool


class Scrubbed(msgspec.Struct, frozen=True, tag=True):
    """What a `Scrub` found; see `ScrubReport`. `error`: the store's medium could not be read, and that ended it."""

    epoch: int
    number: int
    slots: int
    bytes_read: int
    faults: tuple[Fault, ...]
    withdrawn: int
    uncommitted: tuple[SlotRange, ...]
    error: str = ""


FromWorker = (
    Hello
    | Warm
    | Loaded
    | Joined
    | Attached
    | StepDone
    | TasksDone
    | FlushAbandoned
    | Released
    | RebuildDone
    | Recomputed
    | Scrubbed
    | Pong
    | WorkerFailed
)
