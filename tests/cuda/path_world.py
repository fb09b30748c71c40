"""A tensor-parallel group on one device, or on none: arenas, a store and a data path, without any process."""

import numpy as np
import pytest
import torch

from ghostserve.codes import make_backend, make_code
from ghostserve.cuda.arena import DeviceArena
from ghostserve.cuda.path import CudaDataPath
from ghostserve.parity import CacheLayout, HostArena, ParityStore, ShardMap, SlotRange, StoreGeometry, gather, scatter
from ghostserve.parity.file_store import FileStore

POISON = 0xFF
LAYOUT = CacheLayout.layered(num_layers=2, num_blocks=6, block_size=4, row_bytes=16)
# Whole blocks, part-filled ones, a single slot; parity blocks that are not the cache's, out of order.
RANGES = (
    SlotRange(0, 1, 3, 0, 4),
    SlotRange(4, 2, 0, 0, 3),
    SlotRange(2, 7, 5, 1, 2),
    SlotRange(5, 1, 1, 2, 4),
)
NUM_SLOTS = 10
ALL = ["eager", "lazy", pytest.param("cuda", marks=pytest.mark.gpu)]
"""Runtimes that a test runs on; see `make_world`."""


def quiet(stage):
    pass


class World:
    """`path` reads and writes the arenas of all ranks; `truth` are the bytes that they held."""

    def __init__(
        self,
        runtime,
        code="rs:2",
        world=4,
        heads=None,
        layout=LAYOUT,
        ranges=RANGES,
        num_parity_blocks=6,
        mode="ring",
        folder=None,
        **more,
    ):
        """`folder`: the store's payload lies in a file there."""
        self.runtime, self.layout, self.ranges = runtime, layout, ranges
        self.shard_map = ShardMap.for_kv_heads(world, heads or world)
        self.code = make_code(code, self.shard_map.num_shards)
        # Never poison, so that what is poison was not written.
        shards = np.random.default_rng(3).integers(0, POISON, (self.code.n, layout.total_bytes), dtype=np.uint8)
        self.truth = [shards[self.shard_map.shard_of(rank)] for rank in range(world)]
        self.arenas = [DeviceArena.allocate(runtime, layout.total_bytes) for _ in range(world)]
        for arena, truth in zip(self.arenas, self.truth, strict=True):
            arena.tensor.copy_(torch.from_numpy(truth))
        geometry = StoreGeometry(self.code.n, self.code.k, num_parity_blocks, layout.block_size, layout.slot_bytes)
        self.store = FileStore.create_in(str(folder), geometry) if folder else ParityStore.create(geometry)
        self.store._payload[:] = POISON
        self.parts = {"store": self.store, "code": self.code, "layout": layout, "shard_map": self.shard_map}
        self.path = CudaDataPath(runtime=runtime, backend=make_backend("cpu"), mode=mode, **self.parts, **more)
        self.path.connect(0, self.arenas)
        self.settle()

    def settle(self):
        """What torch wrote by itself has arrived before streams of our own read it."""
        if self.runtime.device.type == "cuda":
            torch.cuda.synchronize(self.runtime.device)

    def flush(self, ranges=None, epoch=1, after=None, on_stage=quiet):
        self.path.encode(epoch, self.ranges if ranges is None else ranges, after, on_stage)

    def reference(self):
        """The store that the CPU's encoder fills from the same bytes."""
        from ghostserve.checkpoint import encode_ranges

        store = ParityStore.create(self.store.geometry)
        store._payload[:] = POISON
        parts = self.parts | {"store": store, "arenas": [HostArena(t) for t in self.truth]}
        encode_ranges(**parts, backend=make_backend("cpu"), epoch=1, ranges=self.ranges)
        return store

    def wipe(self, *ranks):
        for rank in ranks:
            self.arenas[rank].tensor.fill_(POISON)
        self.settle()

    def rebuild(self, *lost, targets=None, ranges=None, wipe=True):
        if wipe:
            self.wipe(*lost)
        return self.path.rebuild(lost, self.ranges if ranges is None else ranges, lost if targets is None else targets)

    def host(self, rank):
        self.settle()
        return self.arenas[rank].tensor.cpu().numpy()

    def whole(self, rank, ranges=None):
        ranges = self.ranges if ranges is None else ranges
        return np.array_equal(
            gather(self.host(rank), self.layout, ranges), gather(self.truth[rank], self.layout, ranges)
        )

    def only_asked(self, rank, ranges=None):
        """A wiped arena has just the bytes of the asked slots back: nothing beside them was written."""
        ranges = self.ranges if ranges is None else ranges
        expected = np.full_like(self.truth[rank], POISON)
        scatter(expected, self.layout, ranges, gather(self.truth[rank], self.layout, ranges))
        return np.array_equal(self.host(rank)[: expected.size], expected)

    def poisoned(self, rank, ranges):
        return bool((gather(self.host(rank), self.layout, ranges) == POISON).all())

    def flip(self, rank, slots, byte=0):
        data = self.arenas[rank].gather(self.layout, [slots])
        data[:, byte] ^= 0x40
        self.arenas[rank].scatter(self.layout, [slots], data)

    def close(self):
        self.path.close()
        for arena in self.arenas:
            arena.close()
        self.store.close()
