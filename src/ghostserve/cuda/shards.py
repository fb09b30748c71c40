"""Where the shards of a plan lie, for kernels that read and write them in place."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from math import gcd

import numpy as np
from numpy.typing import NDArray

from ghostserve.codes.base import stripe_bytes
from ghostserve.errors import UnsupportedCodeError
from ghostserve.parity.geometry import CacheLayout
from ghostserve.parity.ranges import SlotRange, slot_numbers

__all__ = ["ALIGNMENT", "MAX_UNIT_BYTES", "WORD", "FlatShard", "PagedShard", "Units", "slot_index"]

ALIGNMENT = 16
"""Bytes: what one thread loads at a time. Every address, stride and length must be a multiple of it."""

WORD = 4
MAX_UNIT_BYTES = 256


@dataclass(frozen=True)
class PagedShard:
    """A data shard in a paged cache: `addresses[g]` is where segment g of the layout begins (block 0, slot 0).

    One address a segment, so a cache may be one allocation or one a layer.
    """

    addresses: tuple[int, ...]

    @classmethod
    def of_arena(cls, layout: CacheLayout, address: int) -> "PagedShard":
        """The shard in an arena: one allocation that begins at `address` and follows `layout`'s own offsets."""
        return cls(tuple(address + segment.offset for segment in layout.segments))


@dataclass(frozen=True)
class FlatShard:
    """A shard in token-major memory: the slot with row r is the `slot_bytes` at `address + r * row_stride`."""

    address: int
    row_stride: int


class Units:
    """A slot's bytes cut into units of `nbytes`, a power of two, none across two segments or two stripes of the code.

    `count` units a slot, `per_stripe` in a stripe of a code with several symbols; the kernels' tables have one entry a
    unit.
    """

    def __init__(self, layout: CacheLayout, rows: int, largest: int = MAX_UNIT_BYTES) -> None:
        """`rows`: symbols a slot; `largest`: bytes, a power of two.

        Raises `UnsupportedCodeError` where a unit of at least `ALIGNMENT` bytes does not exist."""
        slot_bytes = layout.slot_bytes
        sizes = [segment.nbytes for segment in layout.segments]
        strides = [s for g in layout.segments for s in (g.block_stride, g.slot_stride)]
        if slot_bytes % rows:
            raise UnsupportedCodeError(f"slots of {slot_bytes} bytes can't be cut into {rows} symbols")
        stripe = stripe_bytes(slot_bytes, rows)
        common = reduce(gcd, sizes, stripe)
        self.nbytes = min(common & -common, largest)
        if self.nbytes < ALIGNMENT or any(stride % ALIGNMENT for stride in strides):
            raise UnsupportedCodeError(
                f"the GPU kernels need rows and symbols of a multiple of {ALIGNMENT} bytes, at strides of a multiple of"
                f" {ALIGNMENT}: rows have {sorted(set(sizes))} bytes, {rows} symbols {slot_bytes // rows} each,"
                f" strides are {sorted(set(strides))}"
            )
        self.count = slot_bytes // self.nbytes
        self.per_stripe = 1 if rows == 1 else stripe // self.nbytes
        per_segment = [size // self.nbytes for size in sizes]
        self.segment = np.repeat(np.arange(len(sizes)), per_segment)
        """int64 (count,): the segment of each unit."""
        self.within = np.concatenate([np.arange(n) for n in per_segment]) * self.nbytes
        """int64 (count,): where the unit begins in its segment's row, in bytes."""
        self.uniform = len({(g.block_stride, g.slot_stride) for g in layout.segments}) == 1
        """Do all units have the same strides?"""
        self.block_stride = np.array([g.block_stride for g in layout.segments])[self.segment]
        self.slot_stride = np.array([g.slot_stride for g in layout.segments])[self.segment]

    def addresses(self, shard: PagedShard | FlatShard) -> NDArray[np.int64]:
        """The address of each unit at block 0, slot 0 (or row 0): int64 (count,)."""
        if isinstance(shard, FlatShard):
            found = shard.address + np.arange(self.count, dtype=np.int64) * self.nbytes
        else:
            found = np.array(shard.addresses, dtype=np.int64)[self.segment] + self.within
        if (found % ALIGNMENT).any() or (isinstance(shard, FlatShard) and shard.row_stride % ALIGNMENT):
            raise UnsupportedCodeError(f"a shard is not aligned to {ALIGNMENT} bytes: {shard}")
        return found


def slot_index(ranges: Sequence[SlotRange], rows: NDArray[np.integer] | None = None) -> NDArray[np.int32]:
    """(block, slot, row) of every slot of `ranges`, int32 (S, 3); `rows` default to 0..S-1."""
    blocks = np.array([r.block for r in ranges], dtype=np.int32)
    slots = slot_numbers(ranges)
    index = np.empty((len(slots), 3), dtype=np.int32)
    index[:, 0] = np.repeat(blocks, [r.num_slots for r in ranges])
    index[:, 1] = slots
    index[:, 2] = np.arange(len(slots)) if rows is None else rows
    return index
