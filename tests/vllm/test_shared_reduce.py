"""Collectives through shared memory: right on every rank, and broken off when somebody leaves, dies or is told to."""

import multiprocessing
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist

from ghostserve.parity.memory import SharedRegion
from ghostserve.vllm import shared_reduce as module
from ghostserve.vllm.gate import ReleasedError
from ghostserve.vllm.host_links import HostLinks
from ghostserve.vllm.shared_reduce import PART_BYTES, BrokenGroupError, SharedReduce, meet

SECONDS = 60.0
Run = Callable[[Callable[[SharedReduce], Any]], list[Any]]


def ends(world_size: int) -> list[SharedReduce]:
    """All ranks' ends, in this process."""
    nbytes = SharedReduce.nbytes(world_size)
    first = SharedRegion.create("test-reduce", nbytes)
    regions = [first, *(SharedRegion.attach(first.fd, nbytes) for _ in range(world_size - 1))]
    return [SharedReduce(region, rank, world_size) for rank, region in enumerate(regions)]


@pytest.fixture(params=[2, 3, 4])
def group(request: pytest.FixtureRequest) -> Iterator[list[SharedReduce]]:
    made = ends(request.param)
    yield made
    for one in made:
        one.close()


@pytest.fixture
def run(group: list[SharedReduce]) -> Iterator[Run]:
    """The same on all ranks, each on a thread of its own; their results."""
    with ThreadPoolExecutor(len(group)) as pool:
        yield lambda work: list(pool.map(work, group))


def part(rank: int, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    generator = torch.Generator().manual_seed(rank + 1)
    if dtype.is_floating_point:
        return torch.randn(shape, generator=generator).to(dtype)
    return torch.randint(-1000, 1000, shape, generator=generator).to(dtype)


SHAPES = [(1,), (3, 577), (PART_BYTES // 4,), (3, PART_BYTES // 4 + 5)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.int64], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_rank_gets_the_same_sum(
    group: list[SharedReduce], run: Run, shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    def reduce(one: SharedReduce) -> torch.Tensor:
        tensor = part(one.rank, shape, dtype)
        one.all_reduce(tensor)
        return tensor

    total = part(0, shape, dtype).to(torch.float32 if dtype.is_floating_point else dtype)
    for rank in range(1, len(group)):
        total += part(rank, shape, dtype)
    for found in run(reduce):
        assert torch.equal(found, total.to(dtype))


def test_one_after_the_other_without_a_mix_up(group: list[SharedReduce], run: Run) -> None:
    """A rank that is ahead must not write over what others still read."""

    def reduce(one: SharedReduce) -> list[float]:
        found = []
        for step in range(300):
            tensor = torch.full((513,), float(step * 10 + one.rank))
            one.all_reduce(tensor)
            if (step + one.rank) % 7 == 0:
                time.sleep(0.0003)
            assert bool((tensor == tensor[0]).all())
            found.append(float(tensor[0]))
        return found

    size = len(group)
    right = [size * step * 10.0 + sum(range(size)) for step in range(300)]
    assert run(reduce) == [right] * size


def test_a_part_that_is_written_too_early_would_be_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The twin: nobody waits for anybody."""
    monkeypatch.setattr(SharedReduce, "_await", lambda self, peer: None)
    first, second = ends(2)
    tensor = torch.ones(4)
    first.all_reduce(tensor)
    assert not torch.equal(tensor, torch.full((4,), 2.0))
    second.close()
    first.close()


def test_strided_tensors(group: list[SharedReduce], run: Run) -> None:
    def reduce(one: SharedReduce) -> torch.Tensor:
        tensor = torch.full((6, 4), float(one.rank + 1)).t()
        one.all_reduce(tensor)
        return tensor

    size = len(group)
    for found in run(reduce):
        assert torch.equal(found, torch.full((4, 6), size * (size + 1) / 2))


def test_gathering(group: list[SharedReduce], run: Run) -> None:
    shape = (5, PART_BYTES // 8)

    def gather(one: SharedReduce) -> tuple[torch.Tensor, list[torch.Tensor] | None]:
        mine = part(one.rank, shape, torch.float32)
        everything = torch.full((shape[0] * len(group), shape[1]), torch.nan)
        one.all_gather_into_tensor(everything, mine)
        listed = [torch.full(shape, torch.nan) for _ in group] if one.rank == 1 else None
        one.gather(mine, listed, dst=1)
        return everything, listed

    right = [part(rank, shape, torch.float32) for rank in range(len(group))]
    for rank, (everything, listed) in enumerate(run(gather)):
        assert torch.equal(everything, torch.cat(right))
        assert (listed is None) == (rank != 1)
        for found, one in zip(listed or (), right, strict=False):
            assert torch.equal(found, one)


def test_a_wait_ends_when_it_is_broken_off() -> None:
    first, second = ends(2)
    timer = threading.Timer(0.2, first.break_off)
    timer.start()
    with pytest.raises(BrokenGroupError, match="rank 0 broke off in its collective 1"):
        first.all_reduce(torch.ones(4))
    second.all_reduce(torch.ones(4))  # for which all have handed over their parts
    with pytest.raises(BrokenGroupError, match="rank 1 broke off in its collective 2"):
        second.all_reduce(torch.ones(4))
    timer.join()
    first.close()
    second.close()


def test_a_wait_ends_when_a_peer_leaves() -> None:
    first, second = ends(2)
    threading.Timer(0.2, second.close).start()
    with pytest.raises(BrokenGroupError):
        first.all_reduce(torch.ones(4))
    first.close()
    first.close()


# ---- over processes


def _coordinator(rank: int, size: int, port: int) -> Any:
    store = dist.TCPStore("127.0.0.1", port, size, rank == 0)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=size)
    return SimpleNamespace(
        world_size=size,
        rank_in_group=rank,
        ranks=list(range(size)),
        cpu_group=dist.group.WORLD,
        unique_name="tp:0",
        device_communicator=SimpleNamespace(dist_module=None),
    )


def _member(rank: int, size: int, port: int, answers: Any, blind: bool) -> None:
    if blind and rank == 1:
        module._mapped = lambda pid, fd, nbytes: None
    group = _coordinator(rank, size, port)
    links = HostLinks()
    links.open(1, [group], torch.device("cpu"))
    reduce = group.device_communicator.dist_module
    if blind:
        answers.put((rank, reduce))
        return
    tensor = torch.full((700,), float(rank))
    reduce.all_reduce(tensor)
    answers.put((rank, float(tensor[0])))
    if rank == size - 1:
        answers.close()
        answers.join_thread()
        os._exit(9)  # dies without a word
    threading.Timer(0.5, links.cut, (2,)).start()  # as the receiver does when the release comes
    try:
        reduce.all_reduce(tensor)
    except BrokenGroupError as error:
        answers.put((rank, str(error)))
    links.settle()


def members(blind: bool) -> dict[int, list[Any]]:
    context = multiprocessing.get_context("spawn")
    answers = context.Queue()
    port = free_port()
    processes = [context.Process(target=_member, args=(rank, 3, port, answers, blind)) for rank in range(3)]
    for process in processes:
        process.start()
    found: dict[int, list[Any]] = {0: [], 1: [], 2: []}
    for _ in range(3 if blind else 5):
        rank, answer = answers.get(timeout=SECONDS)
        found[rank].append(answer)
    for process in processes:
        process.join(SECONDS)
    return found


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_survivors_of_a_death_are_let_go() -> None:
    found = members(blind=False)
    assert found[2] == [3.0]
    for rank in (0, 1):
        assert found[rank] == [3.0, f"the group of rank {rank} broke off in its collective 2"]


def test_all_or_none_use_it() -> None:
    """One rank can't map the memory: all keep to torch.distributed."""
    assert members(blind=True) == {0: [None], 1: [None], 2: [None]}


def test_an_epoch_that_is_over_is_not_opened() -> None:
    links = HostLinks()
    links.cut(3)
    with pytest.raises(ReleasedError, match="epoch 2 was released at epoch 3"):
        links.open(2, [], torch.device("cpu"))
    links.open(3, [], torch.device("cpu"))


def test_other_processors_keep_to_torch_distributed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.platform, "machine", lambda: "aarch64")
    monkeypatch.setattr(module.dist, "broadcast", lambda *_, **__: None)
    monkeypatch.setattr(module.dist, "all_reduce", lambda *_, **__: None)
    group = SimpleNamespace(world_size=2, rank_in_group=0, ranks=[0, 1], cpu_group=None)
    assert meet(group) is None
