"""A simulated worker process: says and does what `engine/worker.py` does, as two coroutines on the virtual clock.

Its memory, store, encoding and rebuild are the product's; only threads, collectives and the model are not.
"""

from collections import deque
from collections.abc import Callable, Generator, Iterator
from functools import partial
from typing import TYPE_CHECKING

import msgspec

from ghostserve.checkpoint.scrubber import ScrubReport
from ghostserve.checkpoint.tasks import FlushTask
from ghostserve.engine import messages as msg
from ghostserve.errors import StaleEpochError
from ghostserve.faultsim.collective import Collective
from ghostserve.faultsim.store import Write
from ghostserve.parity.ranges import SlotRange

if TYPE_CHECKING:
    from ghostserve.faultsim.world import World

__all__ = ["SimulatedWorker"]

Wait = Callable[[Callable[[bool], None]], None]
"""Given the way to go on, keeps it until it is time."""
Thread = Generator[float | Wait | None, bool, None]
"""A thread of the worker: yields seconds to spend, what to wait for, or None to stop for ever."""

_JOIN_TIMEOUT = 3.0


class SimulatedWorker:
    """Between two messages it knows its rank and its epoch, like the real one."""

    def __init__(self, number: int, world: "World") -> None:
        self.number, self._world = number, world
        self.alive = True
        self.silent = False
        self.ready = False
        self.rank = -1
        self.collective: Collective | None = None
        self.flushing = False
        self._epoch = self._fenced = 0
        self._idle = self._joined_before = False
        self._inbox: deque[msg.ToWorker] = deque()
        self._tasks: deque[tuple[int, FlushTask]] = deque()
        self._scrub: Thread | None = None
        self._wake_main: Callable[[bool], None] | None = None
        self._wake_flusher: Callable[[bool], None] | None = None
        self._drained: Callable[[bool], None] | None = None
        self._start(self._main())
        self._start(self._flusher())

    # ---- threads on the virtual clock

    def _start(self, thread: Thread) -> None:
        def go_on(value: bool) -> None:
            if self.alive and not self.silent:
                obey(thread.send(value))

        def obey(wanted: float | Wait | None) -> None:
            if isinstance(wanted, float):
                self._world.clock.after(wanted, partial(go_on, True))
            elif wanted is not None:
                wanted(go_on)

        self._world.clock.after(0.0, lambda: obey(next(thread)))

    def _point(self, name: str, writes: list[Write] | None = None) -> Thread:
        """A place where a fault may strike: then this thread goes no further."""
        if self._world.strike(name, self, writes):
            yield None

    # ---- the receiver

    def receive(self, message: msg.ToWorker) -> None:
        """A message has arrived; pings and fences are seen to at once, whatever the main thread does."""
        if not self.alive or self.silent:
            return
        if isinstance(message, msg.Ping):
            waits = self.collective is not None and self.collective.waits(self.number)
            self._say(msg.Pong(message.token, self._idle or waits))
            return
        if isinstance(message, msg.Release):
            self._fenced = max(self._fenced, message.epoch)
            if self.collective is not None:
                self.collective.fail(self.number)
        self._inbox.append(message)
        wake, self._wake_main = self._wake_main, None
        if wake is not None:
            wake(True)

    def _say(self, message: msgspec.Struct) -> None:
        self._world.group.hear(self.number, message)

    # ---- the main thread

    def _main(self) -> Thread:
        yield self._world.random.uniform(0.1, 0.4)
        yield from self._point("start")
        self._say(msg.Hello(self.number))
        while True:
            while not self._inbox:
                self._idle = True
                yield self._park_main
            self._idle = False
            yield from self._handle(self._inbox.popleft())

    def _park_main(self, resume: Callable[[bool], None]) -> None:
        self._wake_main = resume

    def _handle(self, message: msg.ToWorker) -> Thread:
        match message:
            case msg.Load(rank):
                yield from self._load(rank)
            case msg.Join(epoch, _):
                yield from self._join(epoch)
            case msg.Release(epoch):
                yield from self._release(epoch)
            case msg.RunStep(epoch, plan):
                if epoch == self._epoch:
                    yield from self._run_step(plan)
            case msg.Rebuild(epoch, lost_ranks, ranges):
                if epoch == self._epoch:
                    yield from self._rebuild(lost_ranks, ranges)
            case msg.Scrub(epoch, number, ranges):
                if epoch == self._epoch:
                    self._scrub = self._scrub_pieces(epoch, number, self._world.path.scrub(ranges))
                    self._rouse_flusher()
            case _:
                raise AssertionError(f"unexpected {type(message).__name__}")

    def _load(self, rank: int) -> Thread:
        yield from self._point("load.begin")
        self.rank = rank
        yield self._world.random.uniform(0.05, 0.3)
        self._say(msg.Loaded(rank, 0))

    def _join(self, epoch: int) -> Thread:
        yield from self._point("join.begin")
        self._epoch = epoch
        if not self._joined_before:
            self._joined_before = True
            self._world.scramble(self.rank)  # a new process's device memory holds anything
        if self._fenced > epoch:
            self._peer_failed("the epoch was released")
            return
        self.collective = self._world.collective(epoch)
        group = self.collective
        binding = [True]  # emptied when it is over
        # A rendezvous that nobody completes ends by its own timeout.
        self._world.clock.after(_JOIN_TIMEOUT, lambda: group.fail(self.number) if binding else None)
        joined = yield self._meet
        binding.clear()
        if not joined:
            self._peer_failed("the rendezvous failed")
            return
        self._say(msg.Joined(epoch))

    def _meet(self, resume: Callable[[bool], None]) -> None:
        assert self.collective is not None
        self.collective.arrive(self.number, resume)

    def _release(self, epoch: int) -> Thread:
        self._epoch = epoch
        self._unbind()
        present = self._world.store.epoch
        self._tasks = deque(entry for entry in self._tasks if entry[0] >= present)
        self._scrub = None
        while self._tasks or self.flushing:
            yield self._wait_drained
        yield self._world.random.uniform(0.001, 0.02)
        yield from self._point("release.end")
        self._say(msg.Released(epoch))

    def _wait_drained(self, resume: Callable[[bool], None]) -> None:
        self._drained = resume

    def _run_step(self, plan: msg.StepPlan) -> Thread:
        world, epoch = self._world, self._epoch
        yield from self._point("step.begin")
        if self.collective is None:  # the communicator broke in an earlier step of this epoch
            self._peer_failed("not in a group")
            return
        yield world.random.uniform(0.002, 0.01) * world.slowness(self.rank)
        for part, kv in zip(plan.parts, world.step_kv(epoch, plan), strict=True):
            world.model.write(part, self.rank, kv, world.caches[self.rank])
        if not (yield self._meet):
            self._peer_failed("a peer is gone")
            return
        sampled = world.sample(plan) if self.rank == 0 else ()
        yield from self._point("step.end")
        for task in plan.flush:
            if task.encoder == self.rank:
                self._tasks.append((epoch, task))
        self._rouse_flusher()
        if self.rank == 0:
            self._say(msg.StepDone(epoch, plan.step, sampled))

    def _rebuild(self, lost_ranks: tuple[int, ...], ranges: tuple[SlotRange, ...]) -> Thread:
        yield from self._point("rebuild.begin")
        yield self._world.random.uniform(0.005, 0.05)
        done = msg.RebuildDone(self._epoch, self.rank, 0, 0, 0, 0, (), (), ())
        if ranges:
            report = self._world.path.rebuild(lost_ranks, ranges, targets=(self.rank,))
            done = msg.RebuildDone(
                self._epoch,
                self.rank,
                report.slots,
                report.bytes_rebuilt,
                report.bytes_copied,
                report.bytes_read,
                tuple(report.failed),
                report.corrected,
                tuple(report.reasons),
                report.damaged,
            )
        yield from self._point("rebuild.end")
        self._say(done)

    def _peer_failed(self, error: str) -> None:
        self._unbind()
        self._say(msg.WorkerFailed(self._epoch, True, error))

    def _unbind(self) -> None:
        group, self.collective = self.collective, None
        if group is not None:
            group.leave(self.number)

    # ---- the checkpointer's thread

    def _flusher(self) -> Thread:
        while True:
            while not self._tasks:
                scrub = self._scrub
                if scrub is not None:
                    self.flushing = True
                    yield from self._scrub_piece(scrub)
                    continue
                self.flushing = False
                drained, self._drained = self._drained, None
                if drained is not None:
                    drained(True)
                yield self._park_flusher
            epoch, task = self._tasks.popleft()
            self.flushing = True
            yield from self._point("flush.begin")
            writes = self._world.encode(epoch, task)
            yield self._world.random.uniform(0.001, 0.02) * self._world.slowness(self.rank)
            yield from self._point("flush.encoded", writes)
            try:
                for write in writes:
                    self._world.commit(write)
            except StaleEpochError:
                continue  # fenced: the coordinator sends it again if it must
            self._say(msg.TasksDone(epoch, (task.task_id,)))

    def _scrub_piece(self, scrub: Thread) -> Thread:
        """One piece, between two flushes."""
        try:
            yield next(scrub)
        except StopIteration:
            if self._scrub is scrub:
                self._scrub = None

    def _scrub_pieces(self, epoch: int, number: int, reports: Iterator[ScrubReport]) -> Thread:
        total = ScrubReport(0, 0, (), 0)
        yield from self._point("scrub.begin")
        while epoch == self._world.store.epoch:
            yield self._world.random.uniform(0.001, 0.05) * self._world.slowness(self.rank)
            report = next(reports, None)
            if report is None:
                found = total.faults, total.withdrawn, total.uncommitted
                self._say(msg.Scrubbed(epoch, number, total.slots, total.bytes_read, *found))
                return
            total += report

    def _rouse_flusher(self) -> None:
        wake, self._wake_flusher = self._wake_flusher, None
        if wake is not None:
            wake(True)

    def _park_flusher(self, resume: Callable[[bool], None]) -> None:
        self._wake_flusher = resume

    def end(self) -> None:
        """The process is gone, with all its threads and connections."""
        self.alive = False
        self._unbind()
