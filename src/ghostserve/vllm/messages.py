"""What the executor and a worker process say to each other beside vLLM's own queues: msgspec structs over one socket.

vLLM's queues carry vLLM's calls and answers; they are new in every epoch. What decides about membership goes here.
"""

import msgspec

from ghostserve.checkpoint.tasks import FlushTask
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
    "FromWorker",
    "Hello",
    "Join",
    "Joined",
    "Load",
    "Loaded",
    "Ping",
    "Pong",
    "QueueHandle",
    "Release",
    "Released",
    "Shutdown",
    "StepNotes",
    "StoreHandle",
    "TasksDone",
    "ToWorker",
    "WorkerFailed",
]


class QueueHandle(msgspec.Struct, frozen=True):
    """vLLM's handle of a message queue, field by field."""

    local_reader_ranks: list[int]
    buffer_handle: tuple[int, int, int, str]
    local_subscribe_addr: str
    local_notify_addr: str


class StoreHandle(msgspec.Struct, frozen=True):
    """The parity store as workers find it, and which code fills it. `memory`: an arena's handle."""

    memory: bytes
    parity: str
    num_shards: int
    num_parity_blocks: int
    block_size: int
    slot_bytes: int


class StepNotes(msgspec.Struct, frozen=True):
    """What goes along with one step: its number, the last step that is never run again, and its flushes."""

    step: int
    settled: int
    flush: tuple[FlushTask, ...]


class Join(msgspec.Struct, frozen=True, tag=True):
    """Rendezvous of all ranks under `epoch`; a newcomer builds its model here, once the group is there.

    Only the ranks know `secret`.
    """

    epoch: int
    store_port: int
    secret: str
    calls: QueueHandle


ToWorker = Load | Join | Release | Ping | Shutdown


class Loaded(msgspec.Struct, frozen=True, tag=True):
    rank: int


class Joined(msgspec.Struct, frozen=True, tag=True):
    """In the group, with a model. `answers`: the queue that this worker answers calls through.

    `broadcaster`: a queue of vLLM's that rank 0 has made, and whose names are left over if it is killed.
    """

    epoch: int
    answers: QueueHandle
    broadcaster: QueueHandle | None = None


FromWorker = Hello | Loaded | Joined | TasksDone | Released | Pong | WorkerFailed
