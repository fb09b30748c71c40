"""Slots as columns: what many `SlotRange`s say, one entry a slot, for code that must not loop over them in Python."""

from collections.abc import Sequence
from itertools import chain

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
    def of(cls, ranges: Sequence[SlotRange], geometry: StoreGeometry, *, by_row: bool = False) -> "SlotTable":
        """The slots of `ranges`, in order, or (`by_row`) with the ranges in the order of their rows.

        Raises `ValueError` for slots that a store of `geometry` does not have.
        """
        # Brings numba, which takes half a second: only when used.
        from ghostserve.parity.compiled import measure_loop, spread_loop

        parts = chain.from_iterable(map(msgspec.structs.astuple, ranges))
        columns = np.fromiter(parts, dtype=np.int64, count=5 * len(ranges)).reshape(-1, 5)
        slots, outside, ascend = measure_loop(columns, geometry.num_parity_blocks, geometry.block_size)
        if outside >= 0:
            wrong = ranges[outside]
            identity(wrong.block, wrong.generation)  # raises for parts of more than 32 bits
            raise ValueError(
                f"{wrong} is outside a store of {geometry.num_parity_blocks} blocks of {geometry.block_size} slots"
            )
        if by_row and not ascend:
            columns = columns[np.argsort(columns[:, 2] * geometry.block_size + columns[:, 3], kind="stable")]
        table = np.empty((4, slots), dtype=np.int64)
        spread_loop(columns, geometry.block_size, table)
        return cls(table[0], table[1], table[2], table[3].view(np.uint64))

    def __len__(self) -> int:
        return len(self.row)

    def __getitem__(self, which: slice | NDArray[np.bool_] | NDArray[np.int64]) -> "SlotTable":
        return SlotTable(self.block[which], self.slot[which], self.row[which], self.identity[which])
