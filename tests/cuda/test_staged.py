"""The fallback over host mirrors: several ranks as objects in one process, each with its own runtime."""

import threading

import numpy as np
import pytest
import torch
from lazy_runtime import LazyKernels, LazyRuntime
from path_world import LAYOUT, RANGES, quiet

from ghostserve.codes import make_backend
from ghostserve.cuda.arena import DeviceArena
from ghostserve.cuda.staged import StagedDataPath
from ghostserve.errors import StaleEpochError
from ghostserve.parity import ShardMap, SharedRegion, SlotRange, StoreGeometry, gather
from ghostserve.protect import make_strategy

WORLD = 3


class Ranks:
    """`paths[rank]`, with caches that hold `truth`."""

    def __init__(self, kind, protect, folder):
        strategy = make_strategy(protect, "xor")
        code = strategy.code(WORLD)
        self.store = strategy.create(StoreGeometry(WORLD, code.k, 6, 4, LAYOUT.slot_bytes), folder)
        nbytes = StagedDataPath.mirror_bytes(LAYOUT)
        self.mirrors = [SharedRegion.create("mirror", nbytes) for _ in range(WORLD)]
        self.truth = np.random.default_rng(4).integers(0, 255, (WORLD, LAYOUT.total_bytes), dtype=np.uint8)
        self.arenas, self.paths, self.runtimes = [], [], []
        for rank in range(WORLD):
            runtime, kernels = self._runtime(kind)
            arena = DeviceArena.allocate(runtime, LAYOUT.total_bytes)
            arena.tensor.copy_(torch.from_numpy(self.truth[rank]))
            path = StagedDataPath(
                runtime=runtime,
                store=self.store,
                code=code,
                layout=LAYOUT,
                shard_map=ShardMap(WORLD, WORLD),
                # Each process has a mapping of its own of every mirror: pinned ranges do not overlap.
                mirrors=[SharedRegion.attach(m.fd, nbytes) for m in self.mirrors],
                backend=make_backend("cpu"),
                kernels=kernels,
            )
            path.connect(rank, arena)
            self.arenas.append(arena)
            self.paths.append(path)
            self.runtimes.append(runtime)

    def _runtime(self, kind):
        if kind == "cuda":
            from ghostserve.cuda.runtime import CudaRuntime

            return CudaRuntime(0), None
        runtime = LazyRuntime()
        return runtime, LazyKernels(LAYOUT, runtime)

    def arrive(self, *ranks):
        if torch.cuda.is_available():
            torch.cuda.synchronize()  # what torch itself wrote to the arenas
        for rank in ranks:
            self.paths[rank]._connection.stream.synchronize()

    def whole(self, rank):
        self.arrive(rank)
        content = self.arenas[rank].tensor.cpu().numpy()
        return np.array_equal(gather(content, LAYOUT, RANGES), gather(self.truth[rank], LAYOUT, RANGES))

    def close(self):
        for path, arena in zip(self.paths, self.arenas, strict=True):
            path.close()
            arena.close()
        self.store.close()
        for runtime in self.runtimes:
            if isinstance(runtime, LazyRuntime):
                assert runtime.leaks() == {"malloc": 0, "registered": 0, "mapped": 0}


@pytest.fixture(params=["parity", "replicate-host", "replicate-ssd"])
def protect(request):
    return request.param


@pytest.fixture(params=["lazy", pytest.param("cuda", marks=pytest.mark.gpu)])
def ranks(request, protect, tmp_path):
    made = Ranks(request.param, protect, str(tmp_path))
    yield made
    made.close()


def test_what_is_staged_is_encoded_and_rebuilt_into_the_device(ranks):
    for path in ranks.paths:
        path.stage(1, RANGES)
    ranks.arrive(0, 1, 2)
    ranks.paths[1].encode(1, RANGES, ranks.paths[1].mark(), quiet)
    assert ranks.store.committed_slots(RANGES).all()
    ranks.mirrors[2].array[: LAYOUT.total_bytes] = 0xFF
    ranks.arenas[2].tensor.fill_(0xFF)
    ranks.arrive(2)
    assert not ranks.whole(2)
    report = ranks.paths[2].rebuild((2,), (*RANGES, SlotRange(1, 1, 2, 0, 2)), (2,))
    assert report.failed == (SlotRange(1, 1, 2, 0, 2),)
    assert ranks.whole(2)
    with pytest.raises(ValueError, match=r"rank 2 can't refill \[1\]"):
        ranks.paths[2].rebuild((1,), RANGES, (1,))


def test_an_encoder_waits_for_the_slowest_rank(ranks):
    for path in ranks.paths:
        path.stage(1, RANGES[:1])
    ranks.arrive(0, 1, 2)
    for path in ranks.paths:
        path.stage(1, RANGES[1:])
    ranks.arrive(0, 1)
    after = ranks.paths[0].mark()
    assert after == (1, 2)
    flush = threading.Thread(target=ranks.paths[0].encode, args=(1, RANGES, after, quiet))
    flush.start()
    flush.join(0.05)
    slow = isinstance(ranks.runtimes[0], LazyRuntime)  # a real device has long arrived
    assert flush.is_alive() or not slow
    ranks.arrive(2)
    flush.join(10)
    assert ranks.store.committed_slots(RANGES).all()


def test_a_fence_ends_the_wait_for_a_rank_that_is_gone(ranks):
    ranks.paths[0].stage(1, RANGES)
    ranks.arrive(0)
    ranks.store.advance(2)
    with pytest.raises(StaleEpochError):
        ranks.paths[0].encode(1, RANGES, ranks.paths[0].mark(), quiet)
    assert not ranks.store.committed_slots(RANGES).any()


def test_counts_of_another_epoch_do_not_count(ranks):
    for path in ranks.paths:
        path.stage(1, RANGES)
    ranks.arrive(0, 1, 2)
    ranks.store.advance(2)
    ranks.paths[0].stage(2, RANGES)
    ranks.arrive(0)
    assert ranks.paths[0].mark() == (2, 1)
    assert [ranks.paths[0]._arrived(r, 2, 1) for r in range(WORLD)] == [True, False, False]
