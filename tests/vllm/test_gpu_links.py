"""Real NCCL, two processes on one GPU: one dies in the all-reduces, the other is let go, refused, and joins again.

Without a model and without an engine: what hangs here hangs because of NCCL. Needs vLLM for CUDA and NCCL >= 2.30.
"""

import faulthandler
import multiprocessing
import os
import signal
import threading
import time
from multiprocessing.connection import Connection
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from ghostserve.vllm.devices import environment, occupy
from ghostserve.vllm.gate import ReleasedError
from ghostserve.vllm.nccl import NcclLinks
from ghostserve.workers.rendezvous import host_rendezvous

pytest.importorskip("vllm")
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.timeout(180),
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"),
]
SECONDS = 60.0
SIZE = 1 << 20


class Communicator:
    """As vLLM's for a group: its own NCCL communicator."""

    world_size = 2

    def __init__(self, device: torch.device) -> None:
        import torch.distributed as dist
        from vllm.distributed.device_communicators.pynccl import PyNcclCommunicator

        self.pynccl_comm = PyNcclCommunicator(dist.new_group(backend="gloo"), device)

    def all_reduce(self, input_: torch.Tensor) -> torch.Tensor:
        return self.pynccl_comm.all_reduce(input_)

    def destroy(self) -> None:
        self.pynccl_comm.destroy()


class Peer:
    """One process: both kinds of communicators on GPU 0."""

    def __init__(self, rank: int) -> None:
        faulthandler.register(signal.SIGUSR1, all_threads=True)
        self.rank, self.links = rank, NcclLinks()
        occupy(0)
        self.device = torch.device("cuda", 0)

    def join(self, epoch: int, port: int) -> Any:
        import torch.distributed as dist

        from ghostserve.vllm import groups

        groups.meet(epoch, port, "what both know", self.rank, 2, "nccl")
        group = SimpleNamespace(unique_name="tp:0", device_communicator=Communicator(self.device))
        dist.all_reduce(torch.ones(1, device=self.device))  # torch's communicator is made by its first collective
        self.links.open(epoch, [group], self.device)
        return group

    def leave(self, group: Any) -> None:
        import torch.distributed as dist

        self.links.settle()
        group.device_communicator.destroy()
        dist.destroy_process_group()
        dist.distributed_c10d._world.group_count = 0

    def sums(self, group: Any, times: int) -> float:
        found = 0.0
        for _ in range(times):
            found = float(group.device_communicator.all_reduce(torch.ones(SIZE, device=self.device))[-1])
        return found


def victim(port: int) -> None:
    peer = Peer(1)
    group = peer.join(1, port)
    peer.sums(group, 10)
    os.kill(os.getpid(), signal.SIGKILL)


def newcomer(port: int) -> None:
    peer = Peer(1)
    assert peer.sums(peer.join(2, port), 10) == 2.0
    os._exit(0)  # as workers end


def survivor(port: int, pipe: Connection) -> None:
    peer = Peer(0)
    group = peer.join(1, port)
    untouched = torch.arange(SIZE, device=peer.device)
    told = threading.Event()

    def receive() -> None:
        pipe.recv()
        began = time.monotonic()
        peer.links.cut(2)
        print(f"aborted in {time.monotonic() - began:.2f} s", flush=True)
        told.set()

    threading.Thread(target=receive, daemon=True).start()
    try:
        peer.sums(group, 100000)
    except ReleasedError as error:
        pipe.send(f"refused: {error}")
    assert told.wait(SECONDS)
    began = time.monotonic()
    peer.leave(group)
    print(f"left in {time.monotonic() - began:.2f} s", flush=True)
    again = pipe.recv()
    began = time.monotonic()
    group = peer.join(2, again)
    print(f"joined in {time.monotonic() - began:.2f} s", flush=True)
    assert torch.equal(untouched.cpu(), torch.arange(SIZE)), "the abort touched other memory"
    pipe.send(peer.sums(group, 10))
    peer.links.cut(3)


def test_a_survivor_comes_back() -> None:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    with pytest.MonkeyPatch.context() as patch:
        from ghostserve.vllm.config import PluginConfig

        for name, value in environment(PluginConfig(device_of_rank=(0, 0)), 2).items():
            patch.setenv(name, value)
        first = host_rendezvous()
        living = context.Process(target=survivor, args=(first.port, theirs), daemon=True)
        dying = context.Process(target=victim, args=(first.port,), daemon=True)
        try:
            living.start()
            dying.start()
            dying.join(SECONDS)
            assert dying.exitcode == -signal.SIGKILL
            time.sleep(1)  # the survivor now stands in a collective
            ours.send("release")
            assert _answer(ours, living) == "refused: epoch 1 was released at epoch 2"
            second = host_rendezvous()
            replacing = context.Process(target=newcomer, args=(second.port,), daemon=True)
            replacing.start()
            ours.send(second.port)
            assert _answer(ours, living) == 2.0
            replacing.join(SECONDS)
            assert replacing.exitcode == 0
        finally:
            living.kill()
            dying.kill()


def _answer(pipe: Connection, process: Any) -> Any:
    if not pipe.poll(SECONDS):
        os.kill(process.pid, signal.SIGUSR1)
        time.sleep(1)
        pytest.fail("the survivor hangs: its stacks are above")
    return pipe.recv()
