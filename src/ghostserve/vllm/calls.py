"""Calls from vLLM's engine to the workers: sent, waited for, and carried over a recovery.

The engine's thread sends a call and waits for its answer. When a worker dies the coordinator's thread fences the epoch:
the waiting engine is woken, and waits on until a recovery has come to the same answer, or has failed.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from ghostserve.errors import GhostServeError
from ghostserve.vllm.queues import Call, EpochQueues, QueueError
from ghostserve.vllm.steplog import LoggedStep

__all__ = ["Answers", "Calls", "PendingCall"]

_SEND_SECONDS = 0.2


class Answers(Future[Any]):
    """The future that vLLM's engine gets: waiting for it is what reads the answers."""

    def __init__(self, read: Callable[[], None]) -> None:
        super().__init__()
        self._read = read

    def result(self, timeout: float | None = None) -> Any:
        """vLLM never gives a timeout; steps have their own deadline."""
        while not self.done():
            self._read()
        return super().result(timeout)


@dataclass
class PendingCall:
    """A call that is not answered. `entry`: the step that it belongs to; `reply_rank` None: all ranks answer."""

    method: str | bytes
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    reply_rank: int | None
    future: Answers
    entry: LoggedStep | None = None
    sent: float = 0.0
    results: dict[int, Any] = field(default_factory=dict)

    @property
    def wire(self) -> Call:
        return self.method, self.args, self.kwargs, self.reply_rank

    @property
    def is_step(self) -> bool:
        return self.entry is not None


class Calls:
    """The engine's side. `lock` guards everything here, and what `on_answer` changes."""

    def __init__(self, world_size: int, on_answer: Callable[[PendingCall, Any], Any]) -> None:
        """`on_answer(call, result)` gives what the engine gets instead of a worker's result; called under the lock."""
        self.lock = threading.Condition()
        self.pending: deque[PendingCall] = deque()
        self.failure: GhostServeError | None = None
        self.steps_answered = 0
        self._world_size, self._on_answer = world_size, on_answer
        self._queues: EpochQueues | None = None

    # ---- the engine's thread

    def submit(self, make: Callable[[], PendingCall | Answers]) -> Answers:
        """Send the call that `make` gives, as soon as the workers serve; `make` is called under the lock.

        It may give an answer instead: then nothing is sent. Raises the executor's failure.
        """
        with self.lock:
            queues = self._await_open()
            call = make()
            if isinstance(call, Answers):
                return call
            self.pending.append(call)
            call.sent = time.monotonic()
        self._send(queues, call)
        return call.future

    def future(self) -> Answers:
        return Answers(self.read)

    def read(self) -> None:
        """Wait for the oldest call's answer, through a recovery if there is one."""
        with self.lock:
            if not self.pending:
                return
            call, queues = self.pending[0], self._queues
        if queues is None:
            self._await_recovery(call)
            return
        ranks = range(self._world_size) if call.reply_rank is None else (call.reply_rank,)
        try:
            for rank in ranks:
                if rank not in call.results:
                    result = queues.receive(rank)
                    with self.lock:
                        if queues.cancelled:
                            break  # said after the failure was detected: it counts for nothing
                        call.results[rank] = result
        except QueueError:
            self._await_recovery(call)
            return
        with self.lock:
            if queues.cancelled or not self.pending or self.pending[0] is not call:
                return
            self.pending.popleft()
            self.resolve(call, [call.results[rank] for rank in ranks])

    # ---- the coordinator's thread, and under the lock

    def open(self, queues: EpochQueues) -> None:
        """From now on calls go through `queues`."""
        with self.lock:
            self._queues = queues
            self.lock.notify_all()

    def fence(self) -> None:
        """Nothing is sent any more, and what comes in is not taken: the coordinator has the pending calls now."""
        with self.lock:
            queues, self._queues = self._queues, None
            if queues is not None:
                queues.cancel()

    def fail(self, failure: GhostServeError) -> None:
        """There is no recovery: everyone who waits gets the failure."""
        with self.lock:
            self.failure = failure
            while self.pending:
                self.pending.popleft().future.set_exception(failure)
            self.lock.notify_all()
        self.fence()

    def resolve(self, call: PendingCall, results: list[tuple[bool, Any]]) -> None:
        """Give the engine what the workers have answered (rank by rank). Under the lock."""
        failed = [text for fine, text in results if not fine]
        if failed:
            call.future.set_exception(RuntimeError(f"a worker failed in {call.method!r}: {failed[0]}"))
            return
        values = [value for _, value in results]
        value = values if call.reply_rank is None else values[0]
        self.steps_answered += call.is_step
        call.future.set_result(self._on_answer(call, value))

    @contextmanager
    def taken_over(self) -> Iterator[deque[PendingCall]]:
        """The pending calls, for the coordinator during a recovery; whoever waits looks again afterwards."""
        with self.lock:
            yield self.pending
            self.lock.notify_all()

    # ---- inside

    def _await_open(self) -> EpochQueues:
        self.lock.wait_for(lambda: self._queues is not None or self.failure is not None)
        if self.failure is not None:
            raise self.failure
        assert self._queues is not None
        return self._queues

    def _await_recovery(self, call: PendingCall) -> None:
        with self.lock:
            self.lock.wait_for(lambda: self._queues is not None or call.future.done() or self.failure is not None)

    def _send(self, queues: EpochQueues, call: PendingCall) -> None:
        while not queues.cancelled:
            try:
                queues.send(call.wire, timeout=_SEND_SECONDS)
            except TimeoutError:
                continue  # somebody does not read: that it is dead or hangs is found elsewhere
            return
