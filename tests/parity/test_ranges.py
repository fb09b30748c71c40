from itertools import pairwise

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ghostserve.parity.ranges import SlotRange, merge, num_slots, reordered, select, singles, split, store_order, tiles

RANGES = st.lists(
    st.builds(
        lambda block, start, length: SlotRange(block, 1, block, start, start + length),
        st.integers(0, 3),
        st.integers(0, 8),
        st.integers(0, 8),
    ),
    max_size=6,
)


def test_a_range_is_five_numbers_on_the_wire():
    slots = SlotRange(7, 2, 3, 0, 4)
    assert msgspec.json.encode(slots) == b"[7,2,3,0,4]"
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(slots), type=SlotRange) == slots


@given(RANGES)
def test_merging_keeps_every_slot_in_order(ranges):
    merged = merge(ranges)
    assert list(singles(merged)) == list(singles(ranges))
    assert not any(b.follows(a) for a, b in pairwise(merged))


@given(RANGES, st.integers(1, 9))
def test_tiles_are_full_but_for_the_last(ranges, size):
    cut = list(tiles(ranges, size))
    assert [s for tile in cut for s in singles(tile)] == list(singles(ranges))
    assert all(num_slots(tile) == size for tile in cut[:-1])
    assert all(0 < num_slots(tile) <= size for tile in cut)


@given(RANGES, st.integers(1, 9), st.lists(st.integers(1, 9), max_size=3))
def test_the_first_tiles_have_sizes_of_their_own(ranges, size, first):
    cut = list(tiles(ranges, size, first))
    assert [s for tile in cut for s in singles(tile)] == list(singles(ranges))
    wanted = [*first, *([size] * len(cut))][: len(cut)]
    assert [num_slots(tile) for tile in cut[:-1]] == wanted[:-1]
    assert all(0 < num_slots(tile) <= most for tile, most in zip(cut, wanted, strict=True))


@given(RANGES, st.integers(1, 5))
def test_split_shares_evenly(ranges, parts):
    shares = split(ranges, parts)
    sizes = [num_slots(share) for share in shares]
    assert [s for share in shares for s in singles(share)] == list(singles(ranges))
    assert len(shares) == min(parts, num_slots(ranges))
    assert not sizes or max(sizes) - min(sizes) <= 1


@given(RANGES, st.data())
def test_select_keeps_what_the_mask_says(ranges, data):
    slots = list(singles(ranges))
    mask = np.array(data.draw(st.lists(st.booleans(), min_size=len(slots), max_size=len(slots))), dtype=bool)
    assert list(singles(select(ranges, mask))) == [s for s, m in zip(slots, mask, strict=True) if m]


def test_select_refuses_a_mask_of_another_length():
    with pytest.raises(ValueError, match=r"shorter|longer"):
        select([SlotRange(0, 0, 0, 0, 3)], np.array([True, False]))


@given(RANGES)
def test_in_the_store_s_order_and_back(ranges):
    order = store_order(ranges)
    stored = [ranges[i] for i in order]
    assert stored == sorted(ranges, key=lambda r: (r.parity_block, r.start))
    if ranges:
        mask = np.array([slot.start % 2 == 0 for slot in singles(stored)], dtype=bool)
        assert reordered(mask, ranges, order).tolist() == [slot.start % 2 == 0 for slot in singles(ranges)]
