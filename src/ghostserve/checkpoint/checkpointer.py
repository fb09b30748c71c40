"""A rank's flushes, run beside the model on a thread of their own."""

import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from functools import partial

from ghostserve.checkpoint.tasks import FlushTask
from ghostserve.errors import StaleEpochError
from ghostserve.parity.ranges import SlotRange

__all__ = ["Checkpointer"]

QUEUE_TASKS = 64

Encode = Callable[[int, Sequence[SlotRange], object | None, Callable[[str], None]], None]


class Checkpointer:
    """Runs one rank's flush tasks in the order of their submission.

    `on_done(epoch, task_ids)` is called when tasks are committed, `on_error(epoch, task, error)` when one
    failed for any reason but a stale epoch; both on the checkpointer's thread. A task of an older epoch is
    dropped silently: after a fence the coordinator sends again what it misses. Tasks take part in no
    collective.

    When no flush waits the thread may do something else, piece by piece: see `when_idle`.
    """

    def __init__(
        self,
        *,
        rank: int,
        encode: Encode,
        current_epoch: Callable[[], int],
        on_done: Callable[[int, tuple[int, ...]], object],
        on_error: Callable[[int, FlushTask, Exception], object],
        on_stage: Callable[[str], None] = lambda stage: None,
        queue_tasks: int = QUEUE_TASKS,
    ) -> None:
        """`encode(epoch, ranges, after, on_stage)` returns when all slots of `ranges` are committed under `epoch`.

        `current_epoch` gives the group's. `on_stage` is told where a flush stands, see `encode_ranges`: the place for
        failpoints and traces.
        """
        self._encode, self._current_epoch = encode, current_epoch
        self._on_done, self._on_error, self._on_stage = on_done, on_error, on_stage
        self._limit = queue_tasks
        self._queue: deque[tuple[int, FlushTask, object | None]] = deque()
        self._idle_work: tuple[int, Iterator[object]] | None = None
        self._busy = False
        self._closing = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name=f"checkpointer-{rank}", daemon=True)
        self._thread.start()

    def submit(self, epoch: int, task: FlushTask, after: object | None = None) -> None:
        """Queue `task`; waits while the queue is full, so a slow host slows the model and loses nothing.

        `after`: handed on to `encode`, which may read the slots once it has happened; None: at once. Raises
        `ValueError` after `close`.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._closing or len(self._queue) < self._limit)
            if self._closing:
                raise ValueError(f"task {task.task_id} was submitted to a closed checkpointer")
            self._queue.append((epoch, task, after))
            self._changed.notify_all()

    def when_idle(self, epoch: int, pieces: Iterator[object]) -> None:
        """Take one piece of `pieces` after the other, whenever no flush waits and only while the group is in `epoch`.

        A flush or a fence waits for the end of one piece at most. What is under way is dropped for what is new, and
        silently when the epoch is over. `pieces` raises nothing: an error of its ends the thread.
        """
        with self._changed:
            self._idle_work = (epoch, pieces)
            self._changed.notify_all()

    def drain(self, timeout: float) -> bool:
        """Discard tasks of older epochs and idle work, and wait, up to `timeout` seconds, until nothing is left to do.

        After True no flush of an older epoch runs or will run: this is a fenced rank's last word before it
        rejoins.
        """
        with self._changed:
            epoch = self._current_epoch()
            self._idle_work = None
            self._queue = deque(entry for entry in self._queue if entry[0] >= epoch)
            self._changed.notify_all()
            return self._changed.wait_for(lambda: not self._queue and not self._busy, timeout)

    def close(self) -> None:
        """Discard what is queued, finish the running task and end the thread. Idempotent."""
        with self._changed:
            self._closing = True
            self._queue.clear()
            self._idle_work = None
            self._changed.notify_all()
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def _run(self) -> None:
        try:
            while (work := self._next()) is not None:
                work()
                with self._changed:
                    self._busy = False
                    self._changed.notify_all()
        finally:
            # Also when a callback raised: nobody may wait for a thread that is gone.
            with self._changed:
                self._closing, self._busy = True, False
                self._changed.notify_all()

    def _next(self) -> Callable[[], object] | None:
        with self._changed:
            self._changed.wait_for(lambda: self._closing or self._queue or self._idle_work is not None)
            if self._closing:
                return None
            self._busy = True
            if self._queue:
                work = partial(self._flush, *self._queue.popleft())
            else:
                assert self._idle_work is not None
                work = partial(self._piece, self._idle_work)
            self._changed.notify_all()
            return work

    def _piece(self, work: tuple[int, Iterator[object]]) -> None:
        epoch, pieces = work
        over = object()
        if self._current_epoch() != epoch or next(pieces, over) is over:
            with self._changed:
                if self._idle_work is work:
                    self._idle_work = None

    def _flush(self, epoch: int, task: FlushTask, after: object | None) -> None:
        try:
            self._encode(epoch, task.ranges, after, self._on_stage)
            self._on_done(epoch, (task.task_id,))
        except StaleEpochError:
            return  # fenced: the coordinator knows, and sends it again under the new epoch if it must
        except Exception as error:  # noqa: BLE001 - whatever it is, its owner is told
            self._on_error(epoch, task, error)
