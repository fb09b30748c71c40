"""Collecting the bytes of scattered slots from a paged cache, and putting them back."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ghostserve.parity import records
from ghostserve.parity.geometry import CacheLayout
from ghostserve.parity.ranges import SlotRange, slot_numbers

__all__ = ["gather", "scatter", "warm_up"]

Bytes = NDArray[np.uint8]
Index = NDArray[np.int64]


def gather(arena: Bytes, layout: CacheLayout, ranges: Sequence[SlotRange], out: Bytes | None = None) -> Bytes:
    """The data shards of the slots of `ranges`, uint8 (S, slot_bytes), in their order, token-major.

    `arena`: uint8 (at least layout.total_bytes,). `out`, where given, is filled and returned. Raises
    `ValueError` for slots outside the layout or an arena or `out` of another size. Releases the GIL.
    """
    from ghostserve.parity.compiled import gather_loop  # brings numba, which takes half a second: only when used

    slots = _slot_index(arena, layout, ranges)
    shards = np.empty((len(slots), layout.slot_bytes), dtype=np.uint8) if out is None else out
    _check_shape(shards, len(slots), layout)
    gather_loop(arena, layout.segment_table, slots, shards)
    return shards


def scatter(arena: Bytes, layout: CacheLayout, ranges: Sequence[SlotRange], shards: Bytes) -> None:
    """Write `shards`, uint8 (S, slot_bytes), to the slots of `ranges`: the inverse of `gather`."""
    from ghostserve.parity.compiled import scatter_loop

    slots = _slot_index(arena, layout, ranges)
    _check_shape(shards, len(slots), layout)
    scatter_loop(arena, layout.segment_table, slots, shards)


def warm_up() -> None:
    """Compile both directions and the seal now (or load them from the cache), not in the first flush."""
    records.warm_up()
    layout = CacheLayout.layered(num_layers=1, num_blocks=1, block_size=1, row_bytes=1)
    arena = np.zeros(layout.total_bytes, dtype=np.uint8)
    ranges = [SlotRange(0, 0, 0, 0, 1)]
    scatter(arena, layout, ranges, gather(arena, layout, ranges))


def _slot_index(arena: Bytes, layout: CacheLayout, ranges: Sequence[SlotRange]) -> Index:
    """(block, slot) of every slot, int64 (S, 2), all bounds checked: the compiled loops check nothing."""
    if arena.ndim != 1 or arena.size < layout.total_bytes:
        raise ValueError(f"the arena has shape {arena.shape}, the layout needs ({layout.total_bytes},)")
    for r in ranges:
        if not (0 <= r.block < layout.num_blocks and 0 <= r.start <= r.stop <= layout.block_size):
            raise ValueError(f"{r} is outside a cache of {layout.num_blocks} blocks of {layout.block_size} slots")
    blocks = np.array([r.block for r in ranges], dtype=np.int64)
    return np.stack([np.repeat(blocks, [r.num_slots for r in ranges]), slot_numbers(ranges)], axis=1)


def _check_shape(shards: Bytes, slots: int, layout: CacheLayout) -> None:
    if shards.shape != (slots, layout.slot_bytes):
        raise ValueError(f"shards have shape {shards.shape}, not {(slots, layout.slot_bytes)}")
