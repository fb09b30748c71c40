"""Slots as columns say the same as the ranges that they were made of."""

import numpy as np
import pytest

from ghostserve.parity import ParityStore, SlotRange, StoreGeometry
from ghostserve.parity.ranges import singles
from ghostserve.parity.slots import SlotTable

GEOMETRY = StoreGeometry(num_data=3, num_parity=2, num_parity_blocks=5, block_size=8, slot_bytes=16)
RANGES = [
    SlotRange(70_000, 9, 4, 0, 8),
    SlotRange(2, 1, 0, 3, 3),
    SlotRange(5, 2**32 - 1, 1, 2, 7),
    SlotRange(1, 0, 2, 7, 8),
]


def test_one_entry_a_slot_in_order():
    table = SlotTable.of(RANGES, GEOMETRY)
    slots = list(singles(RANGES))
    assert len(table) == len(slots) == 14
    assert table.block.tolist() == [s.block for s in slots]
    assert table.slot.tolist() == [s.start for s in slots]
    assert table.row.tolist() == [s.parity_block * 8 + s.start for s in slots]
    assert table.identity.tolist() == [s.generation << 32 | s.block for s in slots]


def test_parts_are_the_tables_of_those_slots():
    table = SlotTable.of(RANGES, GEOMETRY)
    mask = np.arange(len(table)) % 3 == 0
    assert table[mask].row.tolist() == table.row[::3].tolist()
    assert table[2:5].identity.tolist() == table.identity[2:5].tolist()
    assert len(SlotTable.of([], GEOMETRY)) == 0


def test_the_store_takes_either():
    store = ParityStore.create(GEOMETRY)
    table = store.table(RANGES)
    sums = np.arange(1, 71, dtype=np.uint64).reshape(14, 5)
    store.begin(1, table)
    store.commit(1, table, sums)
    assert store.committed_slots(RANGES).all()
    assert store.committed_slots(table[3:9]).all()
    assert np.array_equal(store.records(table[3:9]), sums[3:9])
    assert np.array_equal(store.store_rows(RANGES), table.row)
    store.begin(1, table[4:6])
    assert store.committed_slots(RANGES).tolist() == [i not in (4, 5) for i in range(14)]
    # The twin: an identity of another generation is not believed.
    other = store.table([SlotRange(70_000, 8, 4, 0, 8)])
    assert not store.committed_slots(other).any()
    store.close()


@pytest.mark.parametrize(
    "wrong",
    [SlotRange(0, 0, 5, 0, 1), SlotRange(0, 0, -1, 0, 1), SlotRange(0, 0, 0, 0, 9), SlotRange(0, 0, 0, 3, 2)],
)
def test_slots_outside_the_store_are_refused(wrong):
    with pytest.raises(ValueError, match="outside a store of 5 blocks of 8 slots"):
        SlotTable.of([RANGES[0], wrong], GEOMETRY)


@pytest.mark.parametrize("wrong", [SlotRange(-1, 0, 0, 0, 1), SlotRange(1, 2**32, 0, 0, 1)])
def test_numbers_beyond_32_bits_are_refused(wrong):
    with pytest.raises(ValueError, match="both must be in 0"):
        SlotTable.of([*RANGES, wrong], GEOMETRY)
