"""Checkpoint and recovery against context length at toy size: every way brings the same bytes back, or says so."""

import pytest

from ghostserve.bench.gpu.contexts import ContextScale, bench_contexts
from ghostserve.bench.gpu.llama import RankShape
from ghostserve.bench.gpu.restores import LOST, Restores
from ghostserve.bench.gpu.shapes import CacheShape
from ghostserve.bench.gpu.verify import WrongBytesError
from ghostserve.bench.gpu.world import World
from ghostserve.codes.cpu import CpuBackend

CACHE = CacheShape("toy Llama", layers=2, row_bytes=2 * 16 * 2, ranks=4, block_size=4)
RANK = RankShape(CACHE, hidden=32, heads=4, kv_heads=2, head_dim=16, intermediate=48, vocabulary=64)


def quietly(text):
    assert text


def test_contexts(device, runtime):
    scale = ContextScale(ranks=(RANK,), contexts=(8, 16), chunk=8, rounds=1, recomputes=1, samples=8)
    figures = bench_contexts(scale, device, quietly, runtime)
    assert [(f.tokens, f.code) for f in figures] == [(8, "xor 4:1"), (8, "rs 4:2"), (16, "xor 4:1"), (16, "rs 4:2")]
    assert [f.cache_bytes for f in figures[::2]] == [8 * 256 * 4, 16 * 256 * 4]
    assert [f.parity_bytes * f.limit for f in figures] == [f.cache_bytes for f in figures]
    assert all(f.other_bits == 0 for f in figures)
    spreads = [s for f in figures for s in (f.checkpoint, f.copy_all, f.rebuild, f.copy_back, f.recompute)]
    assert all(s.low > 0 and s.samples == 1 for s in spreads)


@pytest.fixture
def ways(device, runtime):
    """A context of two chunks, kept as parity and as copies."""
    with (
        World(runtime, CACHE, 4, "xor", num_parity_blocks=4) as world,
        Restores(world, RANK, tokens=16, chunk=8, backend=CpuBackend()) as found,
    ):
        found.prefill()
        found.remember()
        found.flush()
        found.copy_out()
        found.check_kept(samples=16)
        yield found


def test_every_way_writes_all_of_the_wiped_cache(ways):
    assert int((ways.world.arenas[LOST].tensor == 0xFF).all()) == 0
    for way in (ways.copy_back, ways.rebuild, ways.recompute):
        way()


def test_a_wrong_byte_of_a_copy_is_seen(ways):
    ways.copies.array[100] ^= 1
    with pytest.raises(WrongBytesError, match="the copy of rank 0 is not what its cache holds"):
        ways.check_kept(samples=4)
    with pytest.raises(WrongBytesError, match="the cache of rank 0, copied back, is not what it was"):
        ways.copy_back()


def test_a_wrong_byte_of_another_ranks_copy_is_seen(ways):
    ways.copies.array[-1] ^= 1
    with pytest.raises(WrongBytesError, match="the copy of rank 3 is not what its cache holds"):
        ways.check_kept(samples=4)


def test_a_wrong_byte_of_parity_is_seen(ways):
    ways.world.store.payload(ways.ranges[2])[0, 0, 0] ^= 1
    with pytest.raises(WrongBytesError, match="parity shard 0 is wrong"):
        ways.check_kept(samples=16)
    with pytest.raises(WrongBytesError, match=r"xor 4:1, 16 tokens: .* bytes were rebuilt, 1 ranges were not"):
        ways.rebuild()


def test_a_survivor_that_changed_is_seen(ways):
    ways.world.arenas[1].tensor[0] ^= 1
    with pytest.raises(WrongBytesError, match="bytes were rebuilt"):
        ways.rebuild()


def test_what_a_prefill_does_not_write_is_seen(ways):
    ways.tokens = 8  # the second chunk is left out
    with pytest.raises(WrongBytesError, match="a prefill left 32 rows of the wiped cache as they were"):
        ways.recompute()


def test_other_bits_are_counted(ways):
    ways.model.layers[1].qkv.mul_(-1)
    _, share = ways.recompute()
    assert 0.1 < share <= 0.5  # the second of two layers
