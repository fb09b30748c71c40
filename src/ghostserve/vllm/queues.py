"""vLLM's message queues between the executor and its workers, new in every epoch.

vLLM waits for the other ends of a queue without a limit; here every wait has one, and ends early when somebody dies.
"""

import contextlib
import time
from collections.abc import Callable, Sequence
from multiprocessing import shared_memory
from pathlib import Path
from typing import Any

from vllm.distributed.device_communicators.shm_broadcast import Handle, MessageQueue

from ghostserve.errors import GhostServeError
from ghostserve.vllm.messages import QueueHandle

__all__ = [
    "NOBODY",
    "EpochQueues",
    "QueueError",
    "await_readers",
    "await_writer",
    "handle_of",
    "open_reader",
    "remove_leftovers",
]

Call = tuple[str | bytes, tuple[Any, ...], dict[str, Any], int | None]
"""vLLM's wire format of a call: method, arguments, keywords, and which rank answers (None: all)."""

NOBODY = -1
"""As the rank that answers."""
_SLICE = 0.05


class QueueError(GhostServeError):
    """A queue's other end did not come, or is gone."""


class EpochQueues:
    """The executor's ends of one epoch's queues: calls to all ranks, answers from each."""

    def __init__(self, world_size: int, max_chunk_bytes: int) -> None:
        self._calls = MessageQueue(world_size, world_size, max_chunk_bytes=max_chunk_bytes)
        self._answers: dict[int, MessageQueue] = {}
        self._world_size = world_size
        self.cancelled = False

    @property
    def handle(self) -> QueueHandle:
        return handle_of(self._calls)

    def connect(self, answers: Sequence[QueueHandle], timeout: float, alive: Callable[[], bool]) -> None:
        """All workers have joined: meet them at both ends. Raises `QueueError` after `timeout` seconds or a death."""
        for rank, handle in enumerate(answers):
            self._answers[rank] = open_reader(handle, 0)
        until = time.monotonic() + timeout
        await_readers(self._calls, self._world_size, until, alive)
        for queue in self._answers.values():
            await_writer(queue, until, alive)

    def send(self, call: Call, timeout: float | None = None) -> None:
        """To all ranks; `TimeoutError` if one has not read for that long."""
        self._calls.enqueue(call, timeout=timeout)

    def receive(self, rank: int, timeout: float | None = None) -> tuple[bool, Any]:
        """The next answer of `rank`: whether the call succeeded, and its result or the error's text.

        Raises `TimeoutError`, and `QueueError` once the queues are cancelled.
        """
        try:
            status, result = self._answers[rank].dequeue(timeout=timeout, indefinite=timeout is None)
        except RuntimeError as error:
            raise QueueError("the queues of this epoch are cancelled") from error
        return status.name == "SUCCESS", result

    def cancel(self) -> None:
        """Any thread: whoever waits in `receive` raises."""
        self.cancelled = True
        for queue in [self._calls, *self._answers.values()]:
            queue.shutdown()
        remove_leftovers(self.handle, dead=False)


def handle_of(queue: MessageQueue) -> QueueHandle:
    """What another process needs to open `queue`."""
    handle = queue.export_handle()
    return QueueHandle(
        handle.local_reader_ranks, handle.buffer_handle, handle.local_subscribe_addr, handle.local_notify_addr
    )


def open_reader(handle: QueueHandle, rank: int) -> MessageQueue:
    """The reading end of reader `rank`."""
    return MessageQueue.create_from_handle(
        Handle(
            local_reader_ranks=handle.local_reader_ranks,
            buffer_handle=handle.buffer_handle,
            local_subscribe_addr=handle.local_subscribe_addr,
            local_notify_addr=handle.local_notify_addr,
        ),
        rank,
    )


def await_readers(queue: MessageQueue, count: int, until: float, alive: Callable[[], bool]) -> None:
    """Writer: wait until all readers have subscribed, then tell them. `until`: on the monotonic clock."""
    for _ in range(count):
        _await(queue, until, alive)
    queue.local_socket.send(b"READY")


def await_writer(queue: MessageQueue, until: float, alive: Callable[[], bool]) -> None:
    """Reader: wait until the writer says that all are there."""
    said = _await(queue, until, alive)
    if said != b"READY":
        raise QueueError(f"a queue's writer said {said!r}, not READY")


def remove_leftovers(handle: QueueHandle, *, dead: bool) -> None:
    """Remove a queue's names: its sockets', which stay also when it is closed, and the memory's if the owner is dead.

    Nobody opens it any more. Idempotent.
    """
    for address in (handle.local_subscribe_addr, handle.local_notify_addr):
        Path(address.removeprefix("ipc://")).unlink(missing_ok=True)
    if dead:
        with contextlib.suppress(FileNotFoundError):
            memory = shared_memory.SharedMemory(name=handle.buffer_handle[3])
            memory.close()
            memory.unlink()


def _await(queue: MessageQueue, until: float, alive: Callable[[], bool]) -> bytes:
    while not queue.local_socket.poll(int(_SLICE * 1000)):
        if not alive():
            raise QueueError("a process at the other end of a queue has died")
        if time.monotonic() > until:
            raise QueueError("the other end of a queue did not come in time")
    return bytes(queue.local_socket.recv())
