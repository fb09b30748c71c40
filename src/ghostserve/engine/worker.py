"""A worker process: one tensor-parallel rank, or a standby that waits to become one.

Three threads: this one runs steps and everything else that touches the model, a receiver takes messages (so that a
worker that waits in a collective still answers a ping), and the checkpointer flushes in the shadow.
"""

import os
import queue
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import msgspec
import torch

from ghostserve.checkpoint.checkpointer import Checkpointer
from ghostserve.checkpoint.scrubber import ScrubReport
from ghostserve.checkpoint.tasks import FlushTask
from ghostserve.engine import messages as msg
from ghostserve.engine.communicator import CommunicatorError, make_communicator
from ghostserve.engine.datapath import DataPath, HostDataPath
from ghostserve.engine.hardware import make_hardware
from ghostserve.engine.launch import WorkerConfig
from ghostserve.engine.model import ShardedModel
from ghostserve.engine.runner import StepRunner
from ghostserve.errors import PeerAccessError
from ghostserve.parity.ranges import SlotRange
from ghostserve.workers.channel import Channel, ChannelClosedError
from ghostserve.workers.failpoints import Failpoints

__all__ = ["Worker", "main"]

_DRAIN_SECONDS = 30.0
_STANDBY_SECONDS = 1.0
_SWITCH_SECONDS = 0.0005


class Worker:
    """Stateless about requests: between two messages it knows its rank, its epoch and its part of the weights."""

    def __init__(self, config: WorkerConfig, channel: Channel[msg.ToWorker]) -> None:
        self._config = config
        self._channel = channel
        self._inbox: queue.SimpleQueue[msg.ToWorker] = queue.SimpleQueue()
        self._failpoints = Failpoints.from_environment()
        self._rank = -1
        self._epoch = 0
        self._idle = False
        torch.set_num_threads(config.threads)
        self._communicator = make_communicator(config.device, config.spec.tensor_parallel_size)
        self._model = ShardedModel(config.spec, self._communicator)
        self._hardware = make_hardware(config)
        self._hardware.prepare(self._model, self._communicator)
        self._runner: StepRunner | None = None
        self._checkpointer: Checkpointer | None = None
        self._flush_seconds = 0.0
        self._rebuilder: threading.Thread | None = None

    def run(self) -> None:
        """Serve until told to stop, until the coordinator is gone, or until this worker itself is broken."""
        threading.Thread(target=self._receive, name="receiver", daemon=True).start()
        self._channel.send(msg.Hello(os.getpid()))
        if self._hardware.waits_warm and self._is_standby():
            self._hardware.warm_up(self._model, self._communicator)
            self._channel.send(msg.Warm())
        while not isinstance(message := self._next(), msg.Shutdown):
            self._handle(message)
        self._communicator.unbind()

    def _is_standby(self) -> bool:
        """Who is to begin as a rank is told so at once."""
        deadline = time.monotonic() + _STANDBY_SECONDS
        while self._inbox.empty() and time.monotonic() < deadline:
            time.sleep(0.02)
        return self._inbox.empty()

    def _next(self) -> msg.ToWorker:
        self._idle = True
        message = self._inbox.get()
        self._idle = False
        return message

    def _receive(self) -> None:
        try:
            while True:
                message = self._channel.receive()
                if isinstance(message, msg.Ping):
                    self._channel.send(msg.Pong(message.token, self._idle or self._communicator.waiting))
                    continue
                if isinstance(message, msg.Release):
                    # Here and now: the main thread may hang in a collective that nothing else ends.
                    self._communicator.release(message.epoch)
                self._inbox.put(message)
        except ChannelClosedError:
            # The coordinator is gone, or has given this worker up. The main thread may be stuck: end here.
            os._exit(0)
        except Exception:  # noqa: BLE001 - a worker that does not hear any more is of no use to anybody
            traceback.print_exc()
            os._exit(1)

    def _is_stale(self, message: msg.ToWorker) -> bool:
        """Said in another epoch than this worker is in; what begins an epoch may not be older than that."""
        match message:
            case msg.Join(epoch) | msg.Release(epoch):
                return epoch < self._epoch
            case msg.Attach(epoch) | msg.RunStep(epoch) | msg.Rebuild(epoch) | msg.Recompute(epoch) | msg.Scrub(epoch):
                return epoch != self._epoch
            case _:
                return False

    def _handle(self, message: msg.ToWorker) -> None:
        if self._is_stale(message):
            return
        match message:
            case msg.Load(rank):
                self._load(rank)
            case msg.Join(epoch, store_port, secret):
                self._join(epoch, store_port, secret)
            case msg.Attach(_, handles):
                self._attach(handles)
            case msg.Release(epoch):
                self._release(epoch)
            case msg.RunStep(_, plan):
                self._run_step(plan)
            case msg.Rebuild(_, lost_ranks, ranges, beside):
                self._begin_rebuild(lost_ranks, ranges, beside)
            case msg.Recompute(_, number, lost_ranks, part, ranges):
                self._recompute(number, lost_ranks, part, ranges)
            case msg.Scrub(_, number, ranges):
                self._begin_scrub(number, ranges)
            case msg.Poison(blocks):
                self._hardware.poison(blocks)
            case _:
                raise AssertionError(f"unexpected {type(message).__name__}")

    def _load(self, rank: int) -> None:
        self._failpoints.hit("load.begin", self._rank)
        self._rank = rank
        loaded = self._hardware.load(self._model, rank, self._communicator)
        store, path = self._hardware.store, self._hardware.path
        if store is not None and path is not None:
            store.on_stage = lambda stage: self._failpoints.hit(f"flush.{stage}", rank)
            self._checkpointer = Checkpointer(
                rank=rank,
                encode=partial(self._encode, path),
                current_epoch=lambda: store.epoch,
                on_done=self._flushed,
                on_error=self._flush_failed,
                on_stage=lambda stage: self._failpoints.hit(f"flush.{stage}", rank),
            )
        self._channel.send(msg.Loaded(rank, loaded))
        self._failpoints.hit("load.end", rank)

    def _join(self, epoch: int, store_port: int, secret: str) -> None:
        self._failpoints.hit("join.begin", self._rank)
        self._epoch = epoch
        handle = self._hardware.join()
        if self._runner is None:
            spec, hardware = self._config.spec, self._hardware
            self._runner = StepRunner(spec, self._model, hardware.cache(), hardware.attention)
        try:
            self._communicator.bind(rank=self._rank, epoch=epoch, store_port=store_port, secret=secret)
        except CommunicatorError as error:
            self._peer_failed(error)
            return
        self._channel.send(msg.Joined(epoch, handle))
        self._failpoints.hit("join.end", self._rank)

    def _attach(self, handles: Sequence[bytes]) -> None:
        try:
            self._hardware.attach(handles)
        except PeerAccessError as error:  # a peer that has died since; where it lives, IPC was tried before the start
            self._peer_failed(CommunicatorError(str(error)))
            return
        self._channel.send(msg.Attached(self._epoch))

    def _release(self, epoch: int) -> None:
        """Leave the group and let the shadow come to rest: after this nothing here reads or writes shared memory."""
        self._failpoints.hit("release.begin", self._rank)
        self._epoch = epoch
        self._communicator.unbind()
        if self._rebuilder is not None:
            self._rebuilder.join(_DRAIN_SECONDS)
            if self._rebuilder.is_alive():
                raise CommunicatorError(f"the rebuild of rank {self._rank} did not end within {_DRAIN_SECONDS} s")
        if self._checkpointer is not None and not self._checkpointer.drain(_DRAIN_SECONDS):
            raise CommunicatorError(f"the flush of rank {self._rank} did not end within {_DRAIN_SECONDS} s")
        self._hardware.release()
        self._failpoints.hit("release.end", self._rank)
        self._channel.send(msg.Released(epoch))

    def _run_step(self, plan: msg.StepPlan) -> None:
        assert self._runner is not None
        epoch = self._epoch
        self._failpoints.hit("step.begin", self._rank)
        try:
            sampled = self._runner.run(plan)
        except CommunicatorError as error:
            self._peer_failed(error)
            return
        self._failpoints.hit("step.end", self._rank)
        # This rank has passed the step's last all-reduce, so every rank has written the step's KV: flush what is ours.
        path = self._hardware.path
        if self._checkpointer is not None and path is not None:
            if plan.flush:
                path.stage(epoch, [slots for task in plan.flush for slots in task.ranges])
            own = [task for task in plan.flush if task.encoder == self._rank]
            after = path.mark() if own else None
            for task in own:
                self._checkpointer.submit(epoch, task, after)
        if self._rank == 0:
            self._channel.send(msg.StepDone(epoch, plan.step, sampled))

    def _begin_rebuild(self, lost_ranks: tuple[int, ...], ranges: Sequence[SlotRange], beside: bool) -> None:
        if not beside:
            self._rebuild(self._epoch, lost_ranks, ranges)
            return
        self._rebuilder = threading.Thread(
            target=self._rebuild_beside, args=(self._epoch, lost_ranks, ranges), name="rebuilder", daemon=True
        )
        self._rebuilder.start()

    def _rebuild_beside(self, epoch: int, lost_ranks: tuple[int, ...], ranges: Sequence[SlotRange]) -> None:
        try:
            self._rebuild(epoch, lost_ranks, ranges)
        except ChannelClosedError:
            return  # the receiver ends the process
        except Exception as error:  # noqa: BLE001 - as on the main thread: say why, then end
            traceback.print_exc()
            self._channel.send(msg.WorkerFailed(epoch, False, f"rebuild: {type(error).__name__}: {error}"))
            os._exit(1)

    def _recompute(
        self, number: int, lost_ranks: tuple[int, ...], part: msg.SequencePart, ranges: Sequence[SlotRange]
    ) -> None:
        """One share of the refill: believed only if it comes out with the recorded bits."""
        runner, path = self._runner, self._hardware.path
        assert runner is not None
        assert isinstance(path, HostDataPath), "only planned where the host reaches the caches"
        self._failpoints.hit("recompute.begin", self._rank)
        accepted = True
        if not self._config.skip_rebuild:
            try:
                accepted = path.recompute(
                    self._rank,
                    ranges,
                    run=lambda: runner.run(msg.StepPlan(0, (part,))),
                    keep=self._rank not in lost_ranks,
                )
            except CommunicatorError as error:
                self._peer_failed(error)
                return
        self._failpoints.hit("recompute.end", self._rank)
        self._channel.send(msg.Recomputed(self._epoch, number, accepted))

    def _rebuild(self, epoch: int, lost_ranks: tuple[int, ...], ranges: Sequence[SlotRange]) -> None:
        self._failpoints.hit("rebuild.begin", self._rank)
        done = msg.RebuildDone(epoch, self._rank, 0, 0, 0, 0, (), (), ())
        path = self._hardware.path
        if ranges and not self._config.skip_rebuild and path is not None:
            report = path.rebuild(lost_ranks, ranges, targets=(self._rank,))
            done = msg.RebuildDone(
                epoch,
                self._rank,
                report.slots,
                report.bytes_rebuilt,
                report.bytes_copied,
                report.bytes_read,
                tuple(report.failed),
                report.corrected,
                tuple(report.reasons),
                report.damaged,
            )
        self._failpoints.hit("rebuild.end", self._rank)
        self._channel.send(done)

    def _encode(
        self,
        path: DataPath,
        epoch: int,
        ranges: Sequence[SlotRange],
        after: object | None,
        on_stage: Callable[[str], None],
    ) -> None:
        began = time.perf_counter()
        path.encode(epoch, ranges, after, on_stage)
        self._flush_seconds = time.perf_counter() - began  # `_flushed` comes next, on the same thread

    def _begin_scrub(self, number: int, ranges: Sequence[SlotRange]) -> None:
        if self._checkpointer is not None:
            self._checkpointer.when_idle(self._epoch, self._scrub(self._epoch, number, ranges))

    def _scrub(self, epoch: int, number: int, ranges: Sequence[SlotRange]) -> Iterator[ScrubReport]:
        """On the checkpointer's thread, a piece at a time."""
        path, total = self._hardware.path, ScrubReport(0, 0, (), 0)
        assert isinstance(path, HostDataPath), "only where the host reaches the caches"
        error = ""
        try:
            self._failpoints.hit("scrub.begin", self._rank)
            for report in path.scrub(ranges):
                total += report
                yield report
            self._failpoints.hit("scrub.end", self._rank)
        except OSError as refused:  # the disk's fault, not this rank's
            error = str(refused)
        except Exception as broken:  # noqa: BLE001 - whatever it is, the coordinator is told
            self._channel.send(msg.WorkerFailed(epoch, False, f"scrub {number}: {broken!r}"))
            return
        self._channel.send(
            msg.Scrubbed(
                epoch, number, total.slots, total.bytes_read, total.faults, total.withdrawn, total.uncommitted, error
            )
        )

    def _flushed(self, epoch: int, task_ids: Sequence[int]) -> None:
        self._channel.send(msg.TasksDone(epoch, tuple(task_ids), self._flush_seconds))
        self._failpoints.hit("flush.acked", self._rank)

    def _flush_failed(self, epoch: int, task: FlushTask, error: Exception) -> None:
        if isinstance(error, OSError):  # the disk's fault, not this rank's: its slots stay unprotected
            self._channel.send(msg.FlushAbandoned(epoch, task.task_id, str(error)))
            return
        self._channel.send(msg.WorkerFailed(epoch, False, f"flush task {task.task_id}: {error!r}"))

    def _peer_failed(self, error: CommunicatorError) -> None:
        # Leaving closes our connections, which frees peers that are stuck in the same collective.
        self._communicator.unbind()
        self._channel.send(msg.WorkerFailed(self._epoch, True, str(error).splitlines()[0]))


def main(channel: socket.socket, argument: bytes, descriptors: Sequence[int]) -> int:
    """What the process runs, forked from the nursery; the exit code is 1 if the worker ended by an error of its own.

    `argument`: a `WorkerConfig`, as msgpack. `descriptors`: what it names, under this process's numbers.
    """
    config = msgspec.msgpack.decode(argument, type=WorkerConfig).received(descriptors)
    # A step that waits for the interpreter while a flush has it waits so long at most; Python's own is ten times that.
    sys.setswitchinterval(_SWITCH_SECONDS)
    link: Channel[msg.ToWorker] = Channel(channel, msg.ToWorker)
    try:
        Worker(config, link).run()
    except ChannelClosedError:
        return 1
    except Exception as error:  # noqa: BLE001 - the process's last line of defence: say why, then end
        traceback.print_exc()
        link.send(msg.WorkerFailed(0, False, f"{type(error).__name__}: {error}"))
        return 1
    return 0
