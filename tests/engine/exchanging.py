"""Ranks in processes of their own that sum up what each has, and what the sums must be."""

import multiprocessing
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection

import torch

from ghostserve.engine.exchange import PIECE_BYTES
from ghostserve.workers.rendezvous import host_rendezvous

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
SHAPES = ((1,), (6, 64), (5, PIECE_BYTES // 8 + 1))
"""The last one is several pieces in every dtype, of which the last is small."""

Rank = Callable[[int, int, str, Connection], None]
"""What a rank does: its number, the rendezvous' port and secret, and the pipe to say what it found."""


def part(rank: int, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(rank)).to(dtype)


def content(tensor: torch.Tensor) -> bytes:
    return tensor.view(torch.uint8).cpu().numpy().tobytes()


@contextmanager
def ranks(count: int, does: Rank) -> Iterator[list[Connection]]:
    """Pipes to `count` processes that do `does`; who has not ended by itself at the end is killed, and missed."""
    meeting, spawn = host_rendezvous(), multiprocessing.get_context("spawn")
    pipes = [spawn.Pipe() for _ in range(count)]
    processes = [
        spawn.Process(target=does, args=(rank, meeting.port, meeting.secret, theirs))
        for rank, (_, theirs) in enumerate(pipes)
    ]
    for process in processes:
        process.start()
    for _, theirs in pipes:
        theirs.close()  # a rank that dies is an EOFError here, and no long wait
    try:
        yield [ours for ours, _ in pipes]
        for process in processes:
            process.join(30)
        assert [process.exitcode for process in processes] == [0] * count
    finally:
        for process in processes:
            process.kill()


def heard(pipe: Connection, seconds: float = 120) -> object:
    assert pipe.poll(seconds), "a rank hangs"
    return pipe.recv()


def assert_sums(found: list[list[bytes]], device: str) -> None:
    """`found[rank]`: a tensor's content for every shape and dtype. The bits of one sum over all parts."""
    count = len(found)
    for number, (shape, dtype) in enumerate((shape, dtype) for shape in SHAPES for dtype in DTYPES):
        pieces = [
            torch.stack(pieces)
            for pieces in zip(
                *(part(rank, shape, dtype).view(-1).split(PIECE_BYTES // dtype.itemsize) for rank in range(count)),
                strict=True,
            )
        ]
        whole = torch.cat([piece.to(device).sum(0).cpu() for piece in pieces])
        without = torch.cat([piece[1:].to(device).sum(0).cpu() for piece in pieces])
        for rank in range(count):
            assert found[rank][number] == content(whole), (rank, shape, dtype)
            assert found[rank][number] != content(without), "a part that is missing must show"
