"""Every kernel against the reference: codes, patterns, layouts, parts of blocks, with poisoned outputs."""

from itertools import combinations

import numpy as np
import pytest
import torch
from kernel_cases import PARTS, SINGLES, WHOLE, Case, head_major, token_major, uneven

from ghostserve.codes import make_code
from ghostserve.cuda.kernels import Kernels, Tile, _addressing
from ghostserve.cuda.shards import FlatShard, PagedShard, Units
from ghostserve.errors import UnsupportedCodeError
from ghostserve.parity.geometry import CacheLayout, Segment
from ghostserve.parity.ranges import SlotRange

CODES = [("xor", 4), ("rs:2", 4), ("rdp", 4), ("rs:3", 5), ("rdp", 8), ("copy", 4)]


@pytest.mark.parametrize(("spec", "n"), CODES)
@pytest.mark.parametrize("ranges", [WHOLE, PARTS, SINGLES], ids=["whole", "parts", "singles"])
def test_encode(device, spec, n, ranges):
    assert Case(token_major(64), device).encode(make_code(spec, n), ranges).right


@pytest.mark.parametrize(("spec", "n"), [("xor", 3), ("rs:2", 4), ("rdp", 3)])
def test_rebuild_of_every_set_of_lost_shards(device, spec, n):
    code = make_code(spec, n)
    case = Case(token_major(64, layers=1), device)
    for count in range(1, code.k + 1):
        for lost in combinations(range(n + code.k), count):
            assert case.rebuild(code, lost, SINGLES).right, lost


def test_rebuild_of_one_of_two_lost_shards(device):
    code = make_code("rdp", 5)
    outcome = Case(token_major(64), device).rebuild(code, (1, 4), PARTS, wanted=(4,))
    assert outcome.right


@pytest.mark.parametrize(
    "layout",
    [
        token_major(64),
        token_major(512, layers=1),
        token_major(8192, layers=1, blocks=3, block_size=3),
        token_major(96, layers=1),
        head_major(64),
        head_major(256, heads=4),
        uneven(),
    ],
    ids=["64", "512", "8192", "96", "heads-64", "heads-256", "uneven"],
)
def test_layouts(device, layout):
    size = layout.block_size
    ranges = [SlotRange(2, 0, 0, 0, size), SlotRange(0, 0, 1, 1, size - 1)]
    case = Case(layout, device)
    assert case.encode(make_code("rs:2", 3), ranges).right
    assert case.rebuild(make_code("xor", 3), (1,), ranges).right
    if layout.slot_bytes // 4 % 16 == 0:
        assert case.encode(make_code("rdp", 3), ranges).right


@pytest.mark.parametrize(
    "layout",
    [
        token_major(512, layers=8, blocks=3, block_size=2),
        token_major(256, layers=8, blocks=3, block_size=2),
        head_major(128, heads=4, layers=4, blocks=3, block_size=2),
        head_major(64, heads=4, layers=8, blocks=3, block_size=2),
        token_major(192, layers=8, blocks=3, block_size=2),
    ],
    ids=["runs of four", "runs of two", "heads of a stripe", "two units a stripe", "short stripes"],
)
def test_stripes(device, layout):
    """Slots of several stretches of stripes, whose symbols lie in rows of every kind."""
    ranges = [SlotRange(2, 0, 0, 0, 2), SlotRange(0, 0, 1, 1, 2)]
    code = make_code("rdp", 6)
    case = Case(layout, device)
    assert case.encode(code, ranges).right
    assert case.rebuild(code, (1, 4), ranges).right
    assert case.rebuild(code, (0, 7), ranges).right


def test_rows_anywhere(device):
    """Segments that are an allocation each: no constant distance between the rows of a stripe, few and many of them."""
    for row_bytes in (512, 128):
        even = token_major(row_bytes, layers=8, blocks=3, block_size=2)
        moved = tuple(
            Segment(s.offset + 64 * (n * n % 7), s.block_stride, s.slot_stride, s.nbytes)
            for n, s in enumerate(sorted(even.segments, key=lambda s: s.offset))
        )
        spread = tuple(Segment(2 * s.offset // 64 * 64, s.block_stride, s.slot_stride, s.nbytes) for s in moved)
        case = Case(CacheLayout(3, 2, spread), device)
        code = make_code("rdp", 6)
        assert case.encode(code, [SlotRange(2, 0, 0, 0, 2)]).right
        assert case.rebuild(code, (1, 4), [SlotRange(2, 0, 0, 0, 2)]).right


@pytest.mark.parametrize(("blocks", "even"), [(4096, True), (1 << 20, False)])
def test_steps_that_32_bits_can_not_hold_are_looked_up(blocks, even):
    """The last run of a stretch lies 15 segments behind the first, 30 GiB in the second case. No memory is taken."""
    layout = token_major(128, layers=8, blocks=blocks)
    shard = PagedShard.of_arena(layout, 0)
    assert _addressing(Units(layout, 16), [shard, shard], 16).even == even


@pytest.mark.parametrize("words", [16, 256, 2048])
def test_any_tile_gives_the_same(device, words):
    case = Case(token_major(128), device, Tile(words=words, deepest=3))
    assert case.encode(make_code("rs:2", 3), PARTS).right


def test_few_programs_do_the_work_of_many(device):
    assert Case(token_major(64), device).encode(make_code("rs:2", 3), WHOLE, programs=2).right


def test_without_checksums_the_bytes_are_the_same(device):
    code = make_code("rs:2", 4)
    case = Case(token_major(64), device)
    assert case.run(code.encode_plan, PARTS, paged=lambda shard: shard < 4, checksums=False).right


def test_many_shards(device):
    assert Case(token_major(64, layers=1), device).encode(make_code("rs:8", 32), SINGLES).right
    assert Case(token_major(64, layers=1), device).encode(make_code("copy", 32), SINGLES).right
    code = make_code("rs:8", 32)
    lost = (0, 3, 7, 11, 19, 31, 33, 39)
    assert Case(token_major(64, layers=1), device).rebuild(code, lost, SINGLES).right


def test_a_wrong_coefficient_is_seen(device):
    """The twin of them all: the comparison notices a kernel of another code."""
    case = Case(token_major(64), device)
    right, wrong = make_code("rs:2", 4).encode_plan, make_code("rdp", 4).encode_plan
    found = case.run(right, PARTS, paged=lambda shard: shard < 4)
    other = case.run(wrong, PARTS, paged=lambda shard: shard < 4)
    assert found.right
    assert not np.array_equal(found.outputs[1], other.outputs[1])
    found.outputs[1][0, 0] ^= 1
    assert not found.right


def test_what_is_not_aligned_is_refused_with_the_numbers(device):
    with pytest.raises(UnsupportedCodeError, match=r"rows have \[24\] bytes"):
        Kernels(token_major(24), device).bind(make_code("xor", 2).encode_plan, [PagedShard((0,) * 4)] * 3)
    layout = token_major(64)
    shards = [PagedShard.of_arena(layout, 16), PagedShard.of_arena(layout, 8), FlatShard(0, 256)]
    with pytest.raises(UnsupportedCodeError, match="not aligned to 16"):
        Kernels(layout, device).bind(make_code("xor", 2).encode_plan, shards)
    with pytest.raises(UnsupportedCodeError, match="reads 2 shards and writes 1, 2 were given"):
        Kernels(layout, device).bind(make_code("xor", 2).encode_plan, shards[:2])


def erasures():
    """All erasure patterns of all codes; few a test, as each is a kernel of its own, and tests run side by side."""
    for spec in ("xor", "rdp", "rs:1", "rs:2", "rs:3", "rs:4"):
        for n in range(1, 9):
            code = make_code(spec, n)
            every = [lost for count in range(1, code.k + 1) for lost in combinations(range(n + code.k), count)]
            few = 4 if spec == "rdp" else 12  # its kernels take the compiler longest
            for first in range(0, len(every), few):
                yield pytest.param(code, every[first : first + few], id=f"{spec}-{n}-{first}")


@pytest.mark.gpu
@pytest.mark.parametrize(("code", "patterns"), list(erasures()))
def test_all_erasure_patterns_on_the_device(device, code, patterns):
    case = Case(token_major(256, layers=4), device, Tile())
    assert case.encode(code, WHOLE).right
    for lost in patterns:
        assert case.rebuild(code, lost, PARTS).right, lost


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float32, torch.int8])
def test_every_dtype_is_only_bits(device, dtype):
    """Rows as wide as 3 heads of 64 of the dtype: NaNs, infinities and denormals included, as all bytes are random."""
    case = Case(token_major(3 * 64 * dtype.itemsize, layers=4), device, Tile())
    for spec in ("xor", "rs:2", "rdp"):
        code = make_code(spec, 4)
        assert case.encode(code, PARTS).right
        assert case.rebuild(code, (0, 3)[: code.k], PARTS).right


@pytest.mark.gpu
def test_beyond_four_gigabytes(device):
    """Offsets are 64 bits wide: blocks far up in a cache of 6 GiB."""
    layout = CacheLayout.layered(num_layers=1, num_blocks=3 << 16, block_size=16, row_bytes=1024)
    assert layout.total_bytes > 1 << 32
    arena = torch.empty(layout.total_bytes, dtype=torch.uint8, device=device)
    arena.random_(0, 256)
    out = torch.full((16 * layout.slot_bytes,), 0xA5, dtype=torch.uint8, device=device)
    code = make_code("xor", 1)
    kernels = Kernels(layout, device)
    shard = PagedShard.of_arena(layout, arena.data_ptr())
    bound = kernels.bind(code.encode_plan, [shard, FlatShard(out.data_ptr(), layout.slot_bytes)])
    last = layout.num_blocks - 1
    index = torch.tensor([[last, s, s] for s in range(16)], dtype=torch.int32, device=device)
    bound.launch(index, 16, torch.zeros((16, 2), dtype=torch.int64, device=device))
    cache = arena.view(2, layout.num_blocks, 16, 1024)
    assert torch.equal(out.view(16, 2, 1024), cache[:, last].transpose(0, 1))
