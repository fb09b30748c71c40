"""The sum of ranks that share a device, over gloo here: every rank has the same bits, of every part."""

from multiprocessing.connection import Connection

import exchanging
import pytest
import torch
import torch.distributed as dist

from ghostserve.engine.communicator import CommunicatorError
from ghostserve.engine.exchange import sum_by_exchange
from ghostserve.engine.gloo import GlooCommunicator

RANKS = 3
PIECE_BYTES = 512
SHAPES = ((1,), (6, 64), (5, PIECE_BYTES // 8 + 1))
"""The last one is several pieces in every dtype, of which the last is small."""


class Exchanging(GlooCommunicator):
    def _sum(self, tensor: torch.Tensor) -> None:
        sum_by_exchange(tensor, self.world_size, PIECE_BYTES)


def gathered(outputs: list[torch.Tensor], inputs: list[torch.Tensor]) -> None:
    """gloo has no all_to_all of lists. Where everybody gets the same, it is an all_gather."""
    assert all(tensor is inputs[0] for tensor in inputs)
    dist.all_gather(outputs, inputs[0])


def sum_all(rank: int, port: int, secret: str, said: Connection) -> None:
    dist.all_to_all = gathered  # this process is a rank and nothing else
    communicator = Exchanging(RANKS)
    communicator.bind(rank=rank, epoch=1, store_port=port, secret=secret)
    parts = [exchanging.part(rank, shape, dtype) for shape in SHAPES for dtype in exchanging.DTYPES]
    said.send([exchanging.digest(communicator.all_reduce(part)) for part in parts])
    said.recv()
    communicator.unbind()


def test_every_rank_has_the_sum_of_all_parts() -> None:
    exchanging.assert_sums(exchanging.all_found(RANKS, sum_all), "cpu", SHAPES, PIECE_BYTES)


def test_a_tensor_with_gaps_is_refused() -> None:
    """By this rank, before anything is sent: a `RuntimeError` would count as a peer's fault."""
    with pytest.raises(ValueError, match=r"strides \(4, 2\) for \[3, 2\]: it must be contiguous"):
        sum_by_exchange(torch.ones(3, 4)[:, ::2], RANKS)


def test_a_released_group_sums_nothing() -> None:
    with pytest.raises(CommunicatorError, match="the group was released"):
        Exchanging(RANKS).all_reduce(torch.ones(1))
