"""Slots as columns: what many `SlotRange`s say, one entry a slot, for code that must not loop over them in Python."""

from collections.abc import Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

from ghostserve.parity.geometry import StoreGeometry
from ghostserve.parity.ranges import SlotRange
from ghostserve.parity.records import identity

__all__ = ["SlotTable"]


class SlotTable:
    """`block`, `slot` and `row` (parity_block * block_size + slot), int64 (S,), and `identity`, uint64 (S,).

    Indexing by a slice or a mask gives the table of those slots.
    """

    __slots__ = ("block", "identity", "row", "slot")

    def __init__(
        self, block: NDArray[np.int64], slot: NDArray[np.int64], row: NDArray[np.int64], identity: NDArray[np.uint64]
    ) -> None:
        self.block, self.slot, self.row, self.identity = block, slot, row, identity

    @classmethod
    def of(cls, ranges: Sequence[SlotRange], geometry: StoreGeometry) -> "SlotTable":
        """The slots of `ranges`, in order. Raises `ValueError` for slots that a store of `geometry` does not have."""
        columns = np.array([msgspec.structs.astuple(r) for r in ranges], dtype=np.int64).reshape(-1, 5)
        block, generation, parity_block, start, stop = columns.T
        inside = (parity_block >= 0) & (parity_block < geometry.num_parity_blocks)
        inside &= (start >= 0) & (start <= stop) & (stop <= geometry.block_size)
        if not inside.all():
            raise ValueError(
                f"{ranges[int(inside.argmin())]} is outside a store of {geometry.num_parity_blocks} blocks of"
                f" {geometry.block_size} slots"
            )
        if len(columns):
            for row in (block.argmin(), block.argmax(), generation.argmin(), generation.argmax()):
                identity(int(block[row]), int(generation[row]))  # raises for parts of more than 32 bits
        counts = stop - start
        # Counting on from each range's start: a running number, set back by what came before the range.
        slot = np.arange(counts.sum()) + np.repeat(start - (counts.cumsum() - counts), counts)
        words = (generation << 32 | block).astype(np.uint64)
        return cls(
            np.repeat(block, counts),
            slot,
            np.repeat(parity_block * geometry.block_size, counts) + slot,
            np.repeat(words, counts),
        )

    def __len__(self) -> int:
        return len(self.row)

    def __getitem__(self, which: slice | NDArray[np.bool_] | NDArray[np.int64]) -> "SlotTable":
        return SlotTable(self.block[which], self.slot[which], self.row[which], self.identity[which])
