"""Sums of ranks that share GPUs over real NCCL: their bits, and a release at any moment of a launch.
Needs NCCL >= 2.30, as `test_cuda_faults` does.
"""

import os
import random
import threading
from multiprocessing.connection import Connection

import exchanging
import pytest
import torch

from ghostserve.cuda.facts import MULTI_RANK
from ghostserve.engine.communicator import CommunicatorError
from ghostserve.engine.exchange import PIECE_BYTES
from ghostserve.engine.nccl import NcclCommunicator
from ghostserve.workers.nccl import DEFAULTS, REQUIRED

pytestmark = pytest.mark.gpu

RANKS = 4
EPOCHS = 30
SHAPES = ((1,), (6, 64), (5, PIECE_BYTES // 8 + 1))
"""The last one is several pieces in every dtype, of which the last is small."""


def communicator(rank: int) -> NcclCommunicator:
    """On one GPU, or by turns on two of them."""
    os.environ.update(REQUIRED | DEFAULTS | {MULTI_RANK: "1"})
    torch.cuda.set_device(rank % min(torch.cuda.device_count(), 2))
    torch.cuda.set_stream(torch.cuda.Stream())
    return NcclCommunicator(RANKS)


def sum_all(rank: int, port: int, secret: str, said: Connection) -> None:
    group = communicator(rank)
    group.bind(rank=rank, epoch=1, store_port=port, secret=secret)
    assert group._shared
    found = []
    for shape in SHAPES:
        for dtype in exchanging.DTYPES:
            summed = group.all_reduce(exchanging.part(rank, shape, dtype).cuda())
            group.settle()
            found.append(exchanging.digest(summed))
    said.send(found)
    said.recv()
    group.unbind()


def test_every_rank_has_the_sum_of_all_parts() -> None:
    exchanging.assert_sums(exchanging.all_found(RANKS, sum_all), "cuda", SHAPES, PIECE_BYTES)


def go_on(group: NcclCommunicator, tensor: torch.Tensor) -> None:
    """Sum and gather, launching most of the time: some milliseconds of it, then a wait for the device."""
    while True:
        for _ in range(40):
            group.all_reduce(tensor)
            group.gather_columns(tensor)
        group.settle()


def be_released(rank: int, port: int, secret: str, said: Connection) -> None:
    """Go on until another thread releases the group; then meet again and sum right."""
    group, drawn = communicator(rank), random.Random(rank)
    for epoch in range(1, EPOCHS + 1):
        group.bind(rank=rank, epoch=epoch, store_port=port, secret=secret)
        summed = group.all_reduce(torch.full((6, 64), float(rank), device="cuda"))
        group.settle()
        assert torch.equal(summed, torch.full_like(summed, RANKS * (RANKS - 1) / 2))
        said.send(epoch)
        said.recv()  # all have seen it: from here on, ranks leave at moments of their own
        release = threading.Timer(drawn.uniform(0, 0.012), group.release, (epoch + 1,))
        release.start()
        # By the fence. torch's own word, "was aborted", would be one that met the abort in its middle.
        with pytest.raises(CommunicatorError, match="was released"):
            go_on(group, summed)
        release.join()
    group.unbind()


def test_a_release_at_any_moment_leaves_a_process_that_can_join_again() -> None:
    with exchanging.ranks(RANKS, be_released) as pipes:
        for epoch in range(1, EPOCHS + 1):
            assert [exchanging.heard(pipe) for pipe in pipes] == [epoch] * RANKS
            for pipe in pipes:
                pipe.send("go on")
