"""Ranks in processes of their own that sum up what each has, and what the sums must be."""

import multiprocessing
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from hashlib import sha256
from multiprocessing.connection import Connection

import torch

from ghostserve.workers.rendezvous import host_rendezvous

DTYPES = (torch.float32, torch.bfloat16, torch.float16)

Rank = Callable[[int, int, str, Connection], None]
"""What a rank does: its number, the rendezvous' port and secret, and the pipe to say what it found."""


def part(rank: int, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(rank)).to(dtype)


def digest(tensor: torch.Tensor) -> str:
    return sha256(tensor.view(torch.uint8).cpu().numpy().tobytes()).hexdigest()


@contextmanager
def ranks(count: int, does: Rank) -> Iterator[list[Connection]]:
    """Pipes to `count` processes that do `does` and must end by themselves."""
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
            process.join()


def heard(pipe: Connection, seconds: float = 120) -> object:
    assert pipe.poll(seconds), "a rank hangs"
    return pipe.recv()


def all_found(count: int, does: Rank) -> list[list[str]]:
    """What each of `count` ranks says once; none ends before all have."""
    with ranks(count, does) as pipes:
        found = [heard(pipe) for pipe in pipes]
        for pipe in pipes:
            pipe.send("all have it")
    return found


def assert_sums(found: list[list[str]], device: str, shapes: tuple[tuple[int, ...], ...], piece_bytes: int) -> None:
    """`found[rank]`: a digest for every shape and dtype, each of one sum over all parts, added up piece by piece."""
    for number, (shape, dtype) in enumerate((shape, dtype) for shape in shapes for dtype in DTYPES):
        parts = torch.stack([part(rank, shape, dtype).view(-1) for rank in range(len(found))])
        pieces = parts.to(device).split(piece_bytes // dtype.itemsize, dim=1)
        whole = digest(torch.cat([piece.contiguous().sum(0) for piece in pieces]))
        without = digest(torch.cat([piece[1:].contiguous().sum(0) for piece in pieces]))
        for rank, digests in enumerate(found):
            assert digests[number] == whole, (rank, shape, dtype)
            assert digests[number] != without, "a part that is missing must show"
