"""A worker process: one rank of vLLM, or a standby that waits to become one.

Two threads and vLLM's own: the main one runs calls and joins and leaves groups, a receiver takes messages, so that a
worker that waits in a collective still hears that its epoch is over.
"""

import faulthandler
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
from typing import TYPE_CHECKING, Any

import torch
from tqdm import tqdm
from vllm.config import VllmConfig
from vllm.distributed.device_communicators.shm_broadcast import MessageQueue
from vllm.platforms import current_platform

from ghostserve.errors import CudaError, GhostServeError, PeerAccessError
from ghostserve.vllm import groups
from ghostserve.vllm import messages as msg
from ghostserve.vllm.gate import ReleasedError
from ghostserve.vllm.queues import QueueError, await_readers, await_writer, handle_of, open_reader
from ghostserve.vllm.rank import Rank
from ghostserve.workers.channel import Channel, ChannelClosedError
from ghostserve.workers.failpoints import Failpoints

if TYPE_CHECKING:
    from ghostserve.vllm.host_links import HostLinks
    from ghostserve.vllm.nccl import NcclLinks

__all__ = ["main"]

_MEET_SECONDS = 15.0
_WAITING_IN = (
    "torch.distributed.distributed_c10d",
    "vllm.distributed.device_communicators.pynccl",
    "ghostserve.vllm.shared_reduce",
)
log = logging.getLogger("vllm.ghostserve.worker")
STEP_CALLS = frozenset({"run_step", "sample_tokens", "restore", "attach", "rebuild", "prepare"})
"""What fails in one of these breaks the group: the executor recovers, and runs the step again."""


class Process:
    """What this process is: a channel to the executor, and a rank as soon as it has one."""

    def __init__(self, vllm_config: VllmConfig, channel: Channel[msg.ToWorker], cpus: list[list[int]]) -> None:
        self._config, self._channel, self._cpus = vllm_config, channel, cpus
        self._inbox: queue.SimpleQueue[msg.ToWorker] = queue.SimpleQueue()
        self._failpoints = Failpoints.from_environment()
        self._number = -1
        self._epoch = 0
        self._rank: Rank | None = None
        self._calls: Any = None
        """The queue that calls come from; None between two epochs."""
        self._idle = False
        self._main = threading.get_ident()
        self._links = _make_links()

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
                        self._abandon()
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
                if isinstance(message, msg.Release):
                    self._fence(message.epoch)
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

    def _fence(self, epoch: int) -> None:
        """Here and now: nothing of the epoch is answered any more, and what hangs in a collective is let go."""
        if self._rank is not None:
            self._rank.worker_response_mq = None
        self._links.cut(epoch)

    def _waits(self) -> bool:
        """In a collective, or for the next message: it is not this rank that others wait for."""
        if self._idle or self._links.waiting:
            return True
        frame = sys._current_frames().get(self._main)
        while frame is not None:
            if frame.f_globals.get("__name__") in _WAITING_IN:
                return True
            frame = frame.f_back
        return False

    # ---- epochs

    def _enter(self, join: msg.Join) -> None:
        self._failpoints.hit("join.begin", self._number)
        self._epoch = join.epoch
        try:
            backend = current_platform.dist_backend
            world_size = self._config.parallel_config.world_size
            groups.meet(join.epoch, join.store_port, join.secret, self._number, world_size, backend)
            if self._rank is None:
                self._rank = Rank(self._config, self._number, join)
                self._rank.worker.worker.tell = self._channel.send
            else:
                groups.join(self._config, join.epoch, self._number, self._rank.worker.worker.local_rank, backend)
            self._rank.worker.worker.epoch = join.epoch
            self._links.open(join.epoch, groups.coordinators(), self._rank.worker.worker.device)
            self._meet_queues(join)
        except (RuntimeError, OSError, QueueError, ReleasedError) as error:
            if isinstance(error, torch.AcceleratorError | torch.OutOfMemoryError):
                raise
            self._peer_failed(error, joining=True)

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
        self._links.settle()
        groups.leave()
        if self._rank is not None:
            self._rank.worker_response_mq = None
            self._rank.drain()
            self._rank.worker.worker.let_go()
        self._failpoints.hit("release.end", self._number)
        self._channel.send(msg.Released(epoch))

    def _abandon(self) -> None:
        """Leave the group as it is. That frees peers stuck in the same collective: what they wait in breaks off."""
        self._links.cut(self._epoch + 1)
        groups.leave()

    # ---- calls

    def _run(self, call: tuple[Any, ...]) -> None:
        assert self._rank is not None
        method, args, kwargs, answers = call
        if method not in STEP_CALLS:
            self._rank._execute_worker_rpc(call)
            return
        try:
            output = self._prepare(*args) if method == "prepare" else self._method(method)(*args, **kwargs)
        except Exception as error:
            if _is_own(error):
                raise
            self._peer_failed(error)  # a peer's death shows as many types; the executor sorts them out
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
            with self._links.alone():
                for method, args in calls:
                    getattr(self._rank.worker, method)(*args)
        return self._rank.worker.cache_facts()

    def _peer_failed(self, error: Exception, *, joining: bool = False) -> None:
        """The group is broken, whoever's fault it is: nothing of this epoch is run or answered here any more."""
        self._calls = None
        if self._rank is not None:
            self._rank.worker_response_mq = None
        log.info("rank %d leaves epoch %d", self._number, self._epoch, exc_info=error)
        # What is aborted may let garbage through to the flushes that wait for it: not before the store is fenced, which
        # it is when the release comes. In a join there are none.
        if self._links.clean_cut or joining:
            self._abandon()
        text = f"{type(error).__name__}: {error}"
        self._channel.send(msg.WorkerFailed(self._epoch, True, text.splitlines()[0]))


def _make_links() -> "HostLinks | NcclLinks":
    if current_platform.is_cpu():
        from ghostserve.vllm.host_links import HostLinks

        return HostLinks()
    from ghostserve.vllm.nccl import NcclLinks

    return NcclLinks()


def _is_own(error: Exception) -> bool:
    """This worker's GPU is broken, and with it the worker; nothing that a peer does looks like that."""
    refused = isinstance(error, CudaError) and not isinstance(error, PeerAccessError)
    return refused or isinstance(error, torch.AcceleratorError)


def main(vllm_config: VllmConfig, channel: socket.socket, cpus: list[list[int]]) -> None:
    """The process's entry point; does not return. `cpus`: those that each rank's threads are bound to, if they are."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C at the terminal is the executor's to handle
    faulthandler.register(signal.SIGUSR1, all_threads=True)  # `kill -USR1` shows where a worker hangs
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
