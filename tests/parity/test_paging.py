import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ghostserve.parity import CacheLayout, Segment, SlotRange, gather, scatter
from ghostserve.parity.paging import warm_up

LAYERED = CacheLayout.layered(num_layers=2, num_blocks=4, block_size=4, row_bytes=6)
# Slots outside blocks, unequal rows, gaps between them: nothing that a layered cache would have.
ODD = CacheLayout(4, 4, (Segment(3, 10, 40, 7), Segment(200, 64, 16, 5), Segment(161, 1, 4, 1)))
RANGES = st.lists(
    st.tuples(st.integers(0, 3), st.integers(0, 4), st.integers(0, 4)).map(
        lambda t: SlotRange(t[0], 1, 0, min(t[1:]), max(t[1:]))
    ),
    max_size=5,
)


def reference(arena, layout, ranges):
    rows = []
    for r in ranges:
        for slot in range(r.start, r.stop):
            row = b""
            for s in layout.segments:
                first = s.offset + r.block * s.block_stride + slot * s.slot_stride
                row += arena[first : first + s.nbytes].tobytes()
            rows.append(np.frombuffer(row, np.uint8))
    return np.array(rows, np.uint8).reshape(-1, layout.slot_bytes)


def random_arena(layout, seed=0):
    return np.random.default_rng(seed).integers(0, 256, layout.total_bytes, dtype=np.uint8)


@settings(max_examples=60, deadline=None)
@given(RANGES, st.sampled_from([LAYERED, ODD]))
def test_gather_reads_what_the_reference_reads(ranges, layout):
    arena = random_arena(layout)
    assert np.array_equal(gather(arena, layout, ranges), reference(arena, layout, ranges))


@settings(max_examples=60, deadline=None)
@given(RANGES)
def test_scatter_writes_those_slots_and_nothing_else(ranges):
    arena = random_arena(LAYERED)
    expected = np.full_like(arena, 0xEE)
    scatter(expected, LAYERED, ranges, gather(arena, LAYERED, ranges))
    untouched = np.full_like(arena, 0xEE)
    chosen = np.zeros(arena.size, bool)
    for r in ranges:
        for slot in range(r.start, r.stop):
            for s in LAYERED.segments:
                first = s.offset + r.block * s.block_stride + slot * s.slot_stride
                chosen[first : first + s.nbytes] = True
    untouched[chosen] = arena[chosen]
    assert np.array_equal(expected, untouched)


def test_gather_overwrites_all_of_a_poisoned_buffer():
    arena = np.zeros(LAYERED.total_bytes, np.uint8)
    out = np.full((4, LAYERED.slot_bytes), 0xFF, np.uint8)
    assert gather(arena, LAYERED, [SlotRange(1, 0, 0, 0, 4)], out) is out
    assert not out.any()


@pytest.mark.parametrize(
    "slots",
    [SlotRange(4, 0, 0, 0, 1), SlotRange(-1, 0, 0, 0, 1), SlotRange(0, 0, 0, 2, 5), SlotRange(0, 0, 0, 3, 2)],
)
def test_slots_outside_the_cache_are_refused(slots):
    arena = random_arena(LAYERED)
    with pytest.raises(ValueError, match=r"outside a cache|negative"):
        gather(arena, LAYERED, [slots])


def test_wrong_shapes_are_refused():
    arena, ranges = random_arena(LAYERED), [SlotRange(0, 0, 0, 0, 2)]
    with pytest.raises(ValueError, match="the layout needs"):
        gather(arena[:-1], LAYERED, ranges)
    with pytest.raises(ValueError, match="shards have shape"):
        scatter(arena, LAYERED, ranges, np.zeros((3, LAYERED.slot_bytes), np.uint8))


def test_warm_up_needs_nothing():
    warm_up()
