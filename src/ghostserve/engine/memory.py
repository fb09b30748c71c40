"""The engine's host memory on one node: parity store, on the CPU the KV arenas, on CUDA the weights for newcomers.

All of it is made before any worker starts. On CUDA a rank's KV is its worker's own device memory, and goes with it.
"""

from collections.abc import Sequence

import numpy as np

from ghostserve.codes import Code
from ghostserve.engine.config import EngineConfig
from ghostserve.engine.dryrun import rank_weight_bytes
from ghostserve.engine.modelspec import ModelSpec
from ghostserve.engine.placement import CPU, Placement
from ghostserve.engine.weights import create_regions
from ghostserve.errors import ConfigError, MemoryBudgetError
from ghostserve.parity import records
from ghostserve.parity.geometry import CacheLayout, StoreGeometry
from ghostserve.parity.limits import available_memory, format_bytes
from ghostserve.parity.memory import SharedRegion
from ghostserve.parity.paging import scatter
from ghostserve.parity.ranges import SlotRange, num_slots
from ghostserve.parity.store import ParityStore
from ghostserve.protect import Kept

__all__ = ["EngineMemory"]

_POISON = 0xFF  # NaN in every floating-point type: a slot that was not rebuilt can't pass for one


class EngineMemory:
    """Owned by the coordinator; workers inherit the descriptors. `MemoryBudgetError` if the host is too small."""

    def __init__(self, config: EngineConfig, spec: ModelSpec, placement: Placement = CPU) -> None:
        self.layout = spec.cache_layout
        strategy = config.strategy
        self.code: Code | None = strategy.code(spec.shard_map.num_shards)
        self.store: ParityStore | None = None
        geometry = self._geometry(config, spec)
        self.kept = strategy.kept(geometry) if geometry else Kept(host=0, disk=0)
        size = _arena_bytes(self.layout, placement)
        arenas = spec.tensor_parallel_size if size else 0
        needed = size * arenas + self.kept.host
        available = available_memory()
        if needed > available:
            raise MemoryBudgetError(
                f"KV cache and parity need {format_bytes(needed)} of memory, {format_bytes(available)} are available:"
                " lower kv_cache_memory or parity_memory",
                needed=needed,
                available=available,
            )
        self.arenas: list[SharedRegion] = []
        self.weights: list[SharedRegion] = []
        self.weight_bytes = 0
        self.notes: list[str] = []
        """What was not possible as it was set, and what is done instead: for the status."""
        try:
            for rank in range(arenas):
                self.arenas.append(SharedRegion.create(f"ghostserve-kv-{rank}", size))
            if geometry is not None:
                self.store = strategy.create(geometry, config.protect_folder)
                records.warm_up()  # the first recovery asks what is committed: clients wait for the answer
            if placement.device == "cuda" and config.pin_weights:
                self._keep_weights(spec, reserved=needed)
        except BaseException:
            self.close()
            raise

    def _keep_weights(self, spec: ModelSpec, *, reserved: int) -> None:
        nbytes = rank_weight_bytes(spec)
        try:
            self.weights = create_regions(spec.tensor_parallel_size, nbytes, reserved=reserved)
        except MemoryBudgetError as error:
            self.notes.append(f"newcomers read the weights from files: {error}")
        else:
            self.weight_bytes = nbytes
            total = format_bytes(nbytes * spec.tensor_parallel_size)
            self.notes.append(f"newcomers copy their weights from host memory ({total} of it)")

    @property
    def num_parity_blocks(self) -> int:
        return self.store.geometry.num_parity_blocks if self.store is not None else 0

    def is_committed(self, slots: SlotRange) -> bool:
        return self.count_missing([slots]) == 0

    def count_missing(self, ranges: Sequence[SlotRange]) -> int:
        """Slots of `ranges` without committed parity."""
        if self.store is None:
            return num_slots(ranges)
        return int((~self.store.committed_slots(ranges)).sum()) if ranges else 0

    def wipe(self, rank: int, live: Sequence[SlotRange]) -> int:
        """Lose a dead rank's KV for real: give its pages back, poison the `live` slots. Returns bytes lost.

        On a GPU the memory goes with the process; here it would outlive it, and hide what recovery has to do.
        """
        if self.arenas:
            self.arenas[rank].punch()
        if self.arenas and live:
            scatter(
                self.arenas[rank].array,
                self.layout,
                live,
                np.full((num_slots(live), self.layout.slot_bytes), _POISON, np.uint8),
            )
        return num_slots(live) * self.layout.slot_bytes

    def close(self) -> None:
        """Give the memory back; it is gone when the last worker is. Idempotent."""
        for region in (*self.arenas, *self.weights):
            region.close()
        if self.store is not None:
            self.store.close()
        self.arenas, self.weights, self.store = [], [], None

    def _geometry(self, config: EngineConfig, spec: ModelSpec) -> StoreGeometry | None:
        if self.code is None:
            return None
        self.code.check_slot_bytes(self.layout.slot_bytes)

        def geometry(blocks: int) -> StoreGeometry:
            assert self.code is not None
            return StoreGeometry(self.code.n, self.code.k, blocks, spec.block_size, self.layout.slot_bytes)

        budget = config.parity_memory
        whole = geometry(spec.num_blocks)
        if budget is None or whole.total_bytes <= budget:
            return whole
        least = geometry(1)
        if budget < least.total_bytes:
            raise ConfigError(
                f"parity_memory {budget} can't hold the parity of one block ({least.total_bytes} bytes);"
                " raise it, or choose --protect none"
            )
        per_block = geometry(2).payload_bytes + geometry(2).record_bytes - least.payload_bytes - least.record_bytes
        fits = max(1, (budget - least.payload_offset) // per_block)
        while geometry(fits).total_bytes > budget:
            fits -= 1
        return geometry(fits)


def _arena_bytes(layout: CacheLayout, placement: Placement) -> int:
    """Host bytes of a rank's cache: the cache itself on the CPU, its mirror where shards are staged, else none."""
    if placement.device == "cpu":
        return layout.total_bytes
    if placement.data_path != "cuda-staged":
        return 0
    from ghostserve.cuda.staged import StagedDataPath

    return StagedDataPath.mirror_bytes(layout)
