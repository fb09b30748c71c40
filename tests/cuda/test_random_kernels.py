"""Kernels of random codes, losses, layouts and tiles against the reference: combinations that nobody thought of."""

import pytest
from hypothesis import HealthCheck, Phase, assume, given, seed, settings
from hypothesis import strategies as st
from kernel_cases import Case, head_major, token_major

from ghostserve.codes import make_code
from ghostserve.cuda.kernels import Tile
from ghostserve.errors import UnsupportedCodeError
from ghostserve.parity.geometry import CacheLayout, Segment
from ghostserve.parity.ranges import SlotRange

SPECS = st.sampled_from(["xor", "rdp", "copy", *(f"rs:{k}" for k in range(1, 9))])
# A kernel takes seconds, to interpret or to compile: what fails is shown as it was drawn.
PATIENT = settings(database=None, deadline=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck))
TILES = st.sampled_from([Tile(words=16), Tile(words=64), Tile(words=128, deepest=2), Tile(words=512, warps=1), Tile()])


@st.composite
def padded(draw, blocks, block_size, largest):
    """Segments of lengths and strides of their own, with gaps between rows, blocks and segments."""
    segments, at = [], 0
    for _ in range(draw(st.integers(1, 4))):
        row = 16 * draw(st.integers(1, largest // 16))
        slot = row + 16 * draw(st.integers(0, 3))
        block = slot * block_size + 16 * draw(st.integers(0, 3))
        segments.append(Segment(at, block, slot, row))
        at += block * blocks + 16 * draw(st.integers(0, 4))
    return CacheLayout(blocks, block_size, tuple(segments))


@st.composite
def layouts(draw, largest):
    """Caches of few blocks, whose slots have rows of at most `largest` bytes."""
    blocks, block_size = draw(st.integers(1, 6)), draw(st.sampled_from([1, 2, 3, 8, 16]))
    row, layers = 16 * draw(st.integers(1, largest // 16)), draw(st.integers(1, 3))
    even = token_major(row, layers, blocks, block_size)
    spread = tuple(Segment(2 * s.offset, s.block_stride, s.slot_stride, s.nbytes) for s in even.segments)
    heads = head_major(row, draw(st.integers(1, 4)), 1, blocks, block_size)
    of_their_own = padded(blocks, block_size, largest)
    return draw(st.one_of(st.sampled_from([even, CacheLayout(blocks, block_size, spread), heads]), of_their_own))


@st.composite
def parts(draw, layout):
    """Some of the blocks in any order, each whole or a part of it."""
    blocks = draw(st.lists(st.integers(0, layout.num_blocks - 1), min_size=1, unique=True))
    ranges = []
    for parity_block, block in enumerate(blocks):
        start = draw(st.integers(0, layout.block_size - 1))
        ranges.append(SlotRange(block, 0, parity_block, start, draw(st.integers(start + 1, layout.block_size))))
    return ranges


def check(device, data, *, most_shards, largest):
    """One random plan: parity of all shards, or the data shards that are wanted of those that are lost."""
    spec, n = data.draw(SPECS, "code"), data.draw(st.integers(1, most_shards), "shards")
    code = make_code(spec, n)
    layout = data.draw(layouts(largest), "layout")
    ranges = data.draw(parts(layout), "ranges")
    case = Case(layout, device, data.draw(TILES, "tile"), seed=data.draw(st.integers(0, 1 << 20), "bytes"))
    try:
        case.kernels.warm_up(code.encode_plan, [shard < n for shard in range(n + code.k)])
    except UnsupportedCodeError:
        # Only rdp has layouts (and numbers of shards) that it does not serve, and says so when an engine starts.
        assert spec == "rdp"
        assume(False)
    if data.draw(st.booleans(), "encode?"):
        assert case.encode(code, ranges, programs=data.draw(st.sampled_from([None, 1, 3]), "programs")).right
        return
    lost = data.draw(st.sets(st.integers(0, n + code.k - 1), min_size=1, max_size=code.k), "lost")
    assume(code.rebuilds(lost))
    data_shards = sorted(shard for shard in lost if shard < n)
    wanted = data.draw(st.none() | st.sets(st.sampled_from(data_shards), min_size=1) if data_shards else st.none())
    assert case.rebuild(code, tuple(lost), ranges, wanted=wanted and tuple(wanted)).right


@settings(PATIENT, max_examples=12, derandomize=True)
@given(data=st.data())
def test_any_kernel(device, data):
    check(device, data, most_shards=6, largest=256)


@pytest.mark.gpu
@pytest.mark.parametrize("number", range(16))
def test_many_kernels_on_the_device(device, number):
    """Sixteen times sixty: they run side by side."""

    @seed(number)
    @settings(PATIENT, max_examples=60)
    @given(data=st.data())
    def many(data):
        check(device, data, most_shards=32, largest=8192)

    many()
