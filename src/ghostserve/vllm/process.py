"""A worker process: one rank of vLLM, or a standby that waits to become one.

Two threads and vLLM's own: the main one runs calls and joins and leaves groups, a receiver takes messages, so that a
worker that waits in a collective still hears that its epoch is over.
"""

import gc
import logging
import os
import queue
import signal
import socket
import sys
import threading
import time
import traceback
from typing import Any

import torch
from tqdm import tqdm
from vllm.config import VllmConfig
from vllm.distributed.device_communicators.shm_broadcast import MessageQueue
from vllm.platforms import current_platform
from vllm.v1.executor.multiproc_executor import WorkerProc

from ghostserve.errors import GhostServeError
from ghostserve.vllm import groups
from ghostserve.vllm import messages as msg
from ghostserve.vllm.queues import QueueError, await_readers, await_writer, handle_of, open_reader
from ghostserve.workers.channel import Channel, ChannelClosedError
from ghostserve.workers.failpoints import Failpoints

__all__ = ["main"]

_MEET_SECONDS = 15.0
log = logging.getLogger("vllm.ghostserve.worker")
STEP_CALLS = frozenset({"run_step", "sample_tokens", "restore", "attach", "rebuild", "prepare"})
"""What fails in one of these breaks the group: the executor recovers, and runs the step again."""


class _Rank(WorkerProc):
    """vLLM's worker process, without its start, its end and its loop."""

    def __init__(self, vllm_config: VllmConfig, rank: int, join: msg.Join) -> None:
        self._join = join
        super().__init__(
            vllm_config=vllm_config,
            local_rank=rank,
            rank=rank,
            distributed_init_method=groups.init_method(join.epoch, rank),
            input_shm_handle=None,
            shared_worker_lock=None,
            is_driver_worker=rank == 0,
        )

    def _init_message_queues(self, input_shm_handle: Any, vllm_config: VllmConfig) -> None:
        self.peer_response_handles: list[Any] = []
        self.rpc_broadcast_mq = self.worker_response_mq = None


class Process:
    """What this process is: a channel to the executor, and a rank as soon as it has one."""

    def __init__(self, vllm_config: VllmConfig, channel: Channel[msg.ToWorker], cpus: list[list[int]]) -> None:
        self._config, self._channel, self._cpus = vllm_config, channel, cpus
        self._inbox: queue.SimpleQueue[msg.ToWorker] = queue.SimpleQueue()
        self._failpoints = Failpoints.from_environment()
        self._number = -1
        self._epoch = 0
        self._rank: _Rank | None = None
        self._calls: Any = None
        """The queue that calls come from; None between two epochs."""
        self._idle = False
        self._main = threading.get_ident()

    def run(self) -> None:
        """Serve until told to stop, or until the executor is gone."""
        threading.Thread(target=self._receive, name="receiver", daemon=True).start()
        self._channel.send(msg.Hello(os.getpid()))
        while True:
            match self._next():
                case msg.Load(rank):
                    self._number = rank
                    if self._cpus:
                        os.sched_setaffinity(0, self._cpus[rank])
                    self._channel.send(msg.Loaded(rank))
                case msg.Join() as join:
                    self._enter(join)
                case msg.Release(epoch):
                    self._leave(epoch)
                case msg.Shutdown():
                    if self._rank is not None:
                        groups.leave()
                    return
                case call:
                    self._run(call)

    # ---- what comes in

    def _next(self) -> Any:
        """The next message, or else the next call."""
        while True:
            if self._calls is None or not self._inbox.empty():
                self._idle = True
                message = self._inbox.get()
                self._idle = False
                return message
            self._idle = True
            try:
                call = self._calls.dequeue(indefinite=True)
            except RuntimeError:  # cancelled: there is a message
                continue
            finally:
                self._idle = False
            if self._inbox.empty():  # else this may be a call of an epoch that is over
                return call

    def _receive(self) -> None:
        try:
            while True:
                message = self._channel.receive()
                if isinstance(message, msg.Ping):
                    self._channel.send(msg.Pong(message.token, self._waits()))
                    continue
                if isinstance(message, msg.Release) and self._rank is not None:
                    # Here and now: nothing of this epoch is answered any more.
                    self._rank.worker_response_mq = None
                self._inbox.put(message)
                calls = self._calls
                if calls is not None:
                    calls.shutdown()
        except ChannelClosedError:
            # The executor is gone, or has given this worker up. The main thread may be stuck: end here.
            os._exit(0)
        except Exception:  # noqa: BLE001 - a worker that does not hear any more is of no use to anybody
            traceback.print_exc()
            os._exit(1)

    def _waits(self) -> bool:
        """In a collective, or for the next message: it is not this rank that others wait for."""
        if self._idle:
            return True
        frame = sys._current_frames().get(self._main)
        while frame is not None:
            if frame.f_globals.get("__name__") == "torch.distributed.distributed_c10d":
                return True
            frame = frame.f_back
        return False

    # ---- epochs

    def _enter(self, join: msg.Join) -> None:
        self._failpoints.hit("join.begin", self._number)
        self._epoch = join.epoch
        try:
            backend = current_platform.dist_backend
            groups.meet(join.epoch, join.store_port, self._number, self._config.parallel_config.world_size, backend)
            if self._rank is None:
                self._rank = _Rank(self._config, self._number, join)
                self._rank.worker.worker.tell = self._channel.send
            else:
                groups.join(self._config, join.epoch, self._number, self._number, backend)
            self._rank.worker.worker.epoch = join.epoch
            self._meet_queues(join)
        except (RuntimeError, OSError, QueueError) as error:
            if isinstance(error, torch.AcceleratorError | torch.OutOfMemoryError):
                raise
            self._peer_failed(error)

    def _meet_queues(self, join: msg.Join) -> None:
        assert self._rank is not None
        calls, answers = open_reader(join.calls, self._number), MessageQueue(1, 1)
        own = groups.broadcaster() if self._number == 0 else None
        self._channel.send(msg.Joined(join.epoch, handle_of(answers), own))
        until = time.monotonic() + _MEET_SECONDS
        await_writer(calls, until, self._inbox.empty)
        await_readers(answers, 1, until, self._inbox.empty)
        self._rank.worker_response_mq = answers
        self._calls = calls

    def _leave(self, epoch: int) -> None:
        """Leave the group and let the shadow come to rest: after this nothing here reads or writes shared memory."""
        self._epoch = epoch
        self._calls = None
        groups.leave()
        if self._rank is not None:
            self._rank.worker_response_mq = None
            self._rank.worker.worker.let_go()
        self._failpoints.hit("release.end", self._number)
        self._channel.send(msg.Released(epoch))

    # ---- calls

    def _run(self, call: tuple[Any, ...]) -> None:
        assert self._rank is not None
        method, args, kwargs, answers = call
        if method not in STEP_CALLS:
            self._rank._execute_worker_rpc(call)
            return
        try:
            output = self._prepare(*args) if method == "prepare" else self._method(method)(*args, **kwargs)
        except Exception as error:  # noqa: BLE001 - a peer's death shows as many types; the executor sorts them out
            self._peer_failed(error)
            return
        if answers is None or answers == self._number:
            self._rank.handle_output(output)

    def _method(self, name: str) -> Any:
        assert self._rank is not None
        return getattr(self._rank.worker.worker, name)

    def _prepare(self, newcomers: tuple[int, ...], calls: list[tuple[str, tuple[Any, ...]]]) -> Any:
        """Newcomers do what the others did when they started; then all say what their caches are."""
        assert self._rank is not None
        if self._number in newcomers:
            for method, args in calls:
                getattr(self._rank.worker, method)(*args)
        return self._rank.worker.cache_facts()

    def _peer_failed(self, error: Exception) -> None:
        """The group is broken, whoever's fault it is: nothing of this epoch is run or answered here any more."""
        self._calls = None
        if self._rank is not None:
            self._rank.worker_response_mq = None
        log.info("rank %d leaves epoch %d", self._number, self._epoch, exc_info=error)
        # Leaving closes our connections, which frees peers that are stuck in the same collective.
        groups.leave()
        text = f"{type(error).__name__}: {error}"
        self._channel.send(msg.WorkerFailed(self._epoch, True, text.splitlines()[0]))


def main(vllm_config: VllmConfig, channel: socket.socket, cpus: list[list[int]]) -> None:
    """The process's entry point; does not return. `cpus`: those that each rank's threads are bound to, if they are."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C at the terminal is the executor's to handle
    link: Channel[msg.ToWorker] = Channel(channel, msg.ToWorker)
    code = 0
    # Its progress bars would make a lock that all processes share, and whose name a killed process leaves behind.
    tqdm.set_lock(threading.RLock())
    if current_platform.is_cpu():
        _warm_compiler()
    # vLLM collects garbage when it loads a model: what the imports have made need not be looked through again then.
    gc.collect()
    gc.freeze()
    try:
        Process(vllm_config, link, cpus).run()
    except ChannelClosedError:
        code = 1
    except Exception as error:  # noqa: BLE001 - the process's last line of defence: say why, then end
        traceback.print_exc()
        try:
            link.send(msg.WorkerFailed(0, False, f"{type(error).__name__}: {error}"))
        except GhostServeError:
            traceback.print_exc()
        code = 1
    sys.stderr.flush()
    sys.stdout.flush()
    # Skip interpreter teardown: destroying torch's threads there can hang. What has names is the executor's to remove.
    os._exit(code)


def _warm_compiler() -> None:
    """vLLM compiles a few small functions in its first step, eager or not.

    The code comes from a cache on disk, but a process's first use of the compiler looks for the instruction set by
    starting others: in a standby nobody waits for that.
    """
    torch.compile(torch.neg, dynamic=True)(torch.zeros(2))
