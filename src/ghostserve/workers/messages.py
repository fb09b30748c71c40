"""What coordinators and workers of both engines say to each other: msgspec structs, tagged, over one socket a worker.

Every message that belongs to a membership of the group carries its epoch; the receiver drops what is of another.
"""

import msgspec

__all__ = [
    "Hello",
    "Load",
    "Ping",
    "Pong",
    "Release",
    "Released",
    "Shutdown",
    "TasksDone",
    "WorkerFailed",
]


class Load(msgspec.Struct, frozen=True, tag=True):
    rank: int


class Release(msgspec.Struct, frozen=True, tag=True):
    epoch: int


class Ping(msgspec.Struct, frozen=True, tag=True):
    token: int


class Shutdown(msgspec.Struct, frozen=True, tag=True):
    pass


class Hello(msgspec.Struct, frozen=True, tag=True):
    """The imports are done: the worker can take a rank."""

    pid: int


class TasksDone(msgspec.Struct, frozen=True, tag=True):
    """These flushes are committed; `seconds`: from the beginning of their encoding to the last commit."""

    epoch: int
    task_ids: tuple[int, ...]
    seconds: float = 0.0


class Released(msgspec.Struct, frozen=True, tag=True):
    epoch: int


class Pong(msgspec.Struct, frozen=True, tag=True):
    """Answered by a thread of its own, so that a worker that waits in a collective still answers."""

    token: int
    waiting: bool
    """In a collective, or for the next message: whatever the others wait for, it is not this worker."""


class WorkerFailed(msgspec.Struct, frozen=True, tag=True):
    """`peer` says that the communicator broke (somebody else's fault), else the worker itself is broken."""

    epoch: int
    peer: bool
    error: str
