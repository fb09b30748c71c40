"""Ranks whose caches are kept by a strategy, and lost."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ghostserve.checkpoint.encoding import encode_ranges
from ghostserve.codes import Code, make_backend
from ghostserve.parity import CacheLayout, HostArena, ShardMap, SlotRange, StoreGeometry
from ghostserve.protect import Strategy
from ghostserve.recovery.rebuild import RebuildReport, rebuild

__all__ = ["LAYOUT", "UNWRITTEN", "WRITTEN", "Scene"]

LAYOUT = CacheLayout.layered(num_layers=2, num_blocks=4, block_size=4, row_bytes=64)
WRITTEN = (SlotRange(3, 7, 1, 0, 4), SlotRange(0, 1, 2, 0, 3), SlotRange(2, 2, 0, 1, 2))
UNWRITTEN = (SlotRange(0, 1, 2, 3, 4), SlotRange(1, 1, 3, 0, 2))

_POISON = 0xFF


class Scene:
    """`store` is the coordinator's; flushes go through another strategy's view of it, as in a worker.

    Without a code (`Strategy.code` gives None) there is no store, and nothing is flushed.
    """

    epoch = 1

    def __init__(
        self, strategy: Strategy, workers: Strategy, shards: int, folder: Path, rng: np.random.Generator
    ) -> None:
        self.folder = folder
        self._map = ShardMap(shards, shards)
        self._caches = rng.integers(0, 256, (shards, LAYOUT.total_bytes), dtype=np.uint8)
        self._arenas = [HostArena(cache.copy()) for cache in self._caches]
        self._backend = make_backend()
        self._code = strategy.code(shards)
        if self._code is not None:
            g = StoreGeometry(self._code.n, self._code.k, LAYOUT.num_blocks, LAYOUT.block_size, LAYOUT.slot_bytes)
            self.store = strategy.create(g, str(folder))
            self._view = workers.attach(self.store.fds, g)

    def flush(self, ranges: Sequence[SlotRange]) -> None:
        """Encode and commit `ranges` as a worker does."""
        if self._code is not None:
            encode_ranges(
                store=self._view, code=self._code, backend=self._backend, arenas=self._arenas, layout=LAYOUT,
                shard_map=self._map, epoch=self.epoch, ranges=ranges,
            )  # fmt: skip

    def lose(self, lost: Sequence[int], ranges: Sequence[SlotRange]) -> RebuildReport:
        """Poison the caches of the ranks `lost`, all others as they were, and rebuild `ranges` from the store."""
        for rank, arena in enumerate(self._arenas):
            arena.array[:] = _POISON if rank in lost else self._caches[rank]
        return rebuild(
            store=self.store, code=self._need_code(), backend=self._backend, arenas=self._arenas, layout=LAYOUT,
            shard_map=self._map, lost_ranks=lost, ranges=ranges,
        )  # fmt: skip

    def wrong(self, lost: Sequence[int], ranges: Sequence[SlotRange]) -> list[int]:
        """Those of the ranks `lost` that do not hold in `ranges` what they held before."""
        before = [HostArena(cache) for cache in self._caches]
        return [
            rank
            for rank in lost
            if not np.array_equal(self._arenas[rank].gather(LAYOUT, ranges), before[rank].gather(LAYOUT, ranges))
        ]

    def untouched(self, lost: Sequence[int], ranges: Sequence[SlotRange]) -> bool:
        """Do the ranks `lost` still hold nothing but poison in `ranges`?"""
        return all((self._arenas[rank].gather(LAYOUT, ranges) == _POISON).all() for rank in lost)

    def close(self) -> None:
        if self._code is not None:
            self._view.close()
            self.store.close()

    def _need_code(self) -> Code:
        if self._code is None:
            raise ValueError("this strategy keeps nothing: there is nothing to rebuild from")
        return self._code
