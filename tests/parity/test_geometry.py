import pytest

from ghostserve.errors import ConfigError
from ghostserve.parity import CacheLayout, ParityStore, Segment, ShardMap, StoreGeometry


def test_layered_segments_are_token_major_and_cover_the_arena():
    layout = CacheLayout.layered(num_layers=3, num_blocks=5, block_size=4, row_bytes=6)
    assert layout.slot_bytes == 3 * 2 * 6
    assert layout.total_bytes == layout.slot_bytes * 5 * 4
    assert [s.offset for s in layout.segments] == [i * 5 * 4 * 6 for i in range(6)]
    seen = {
        s.offset + block * s.block_stride + slot * s.slot_stride + byte
        for s in layout.segments
        for block in range(5)
        for slot in range(4)
        for byte in range(s.nbytes)
    }
    assert seen == set(range(layout.total_bytes))


@pytest.mark.parametrize(
    "broken",
    [
        {"num_blocks": 0, "block_size": 4, "segments": (Segment(0, 4, 1, 1),)},
        {"num_blocks": 1, "block_size": 0, "segments": (Segment(0, 4, 1, 1),)},
        {"num_blocks": 1, "block_size": 4, "segments": ()},
        {"num_blocks": 1, "block_size": 4, "segments": (Segment(0, 4, 1, 0),)},
        {"num_blocks": 1, "block_size": 4, "segments": (Segment(-8, 4, 1, 1),)},
    ],
)
def test_impossible_layouts_are_refused(broken):
    with pytest.raises(ConfigError):
        CacheLayout(**broken)


@pytest.mark.parametrize(
    ("world", "heads", "shards"), [(1, 1, 1), (3, 3, 3), (4, 8, 4), (4, 2, 2), (8, 1, 1), (2, 6, 2)]
)
def test_kv_heads_make_shards(world, heads, shards):
    assert ShardMap.for_kv_heads(world, heads) == ShardMap(world, shards)


@pytest.mark.parametrize(("world", "heads"), [(2, 3), (3, 2), (4, 6), (6, 4)])
def test_uneven_kv_heads_are_refused_with_the_numbers(world, heads):
    with pytest.raises(ConfigError, match=rf"{heads} KV heads.*{world} ranks"):
        ShardMap.for_kv_heads(world, heads)


def test_uneven_shards_are_refused():
    with pytest.raises(ConfigError, match="4 ranks can't hold 3 data shards"):
        ShardMap(4, 3)


def test_every_rank_has_a_shard_without_replication():
    ranks = ShardMap(3, 3)
    assert [ranks.shard_of(r) for r in range(3)] == [0, 1, 2]
    assert ranks.lost_shards({1}) == (1,)
    assert ranks.copy_source(1, {1}) is None
    assert ranks.holders({1}) == {0: 0, 2: 2}


def test_replicated_kv_is_copied_before_it_is_rebuilt():
    ranks = ShardMap.for_kv_heads(4, 2)
    assert [ranks.shard_of(r) for r in range(4)] == [0, 0, 1, 1]
    assert ranks.ranks_of(1) == (2, 3)
    assert ranks.copy_source(2, {2}) == 3
    assert ranks.copy_source(0, ()) == 1
    assert ranks.copy_source(2, {2, 3}) is None
    assert ranks.lost_shards({0, 2, 3}) == (1,)
    assert ranks.holders({0}) == {0: 1, 1: 2}


@pytest.mark.parametrize("call", [lambda m: m.shard_of(4), lambda m: m.shard_of(-1), lambda m: m.ranks_of(2)])
def test_unknown_ranks_and_shards_are_refused(call):
    with pytest.raises(ValueError, match="does not exist"):
        call(ShardMap(4, 2))


@pytest.mark.parametrize("element_bytes", [2, 4])
def test_smollm2_costs_a_third_of_the_cache_and_little_more(element_bytes):
    """30 layers, 3 KV heads over TP 3, head size 64: K/N of the cache in parity, records below 2 %."""
    layout = CacheLayout.layered(30, num_blocks=16, block_size=16, row_bytes=64 * element_bytes)
    cache = 3 * layout.total_bytes
    geometry = StoreGeometry(3, 1, 16, 16, layout.slot_bytes)
    assert geometry.payload_bytes * 3 == cache
    assert geometry.record_bytes < 0.02 * geometry.payload_bytes
    store = ParityStore.create(geometry)
    try:
        assert store.region.array.nbytes == geometry.total_bytes
        assert store.region.array.nbytes < cache / 3 * 1.02
    finally:
        store.close()


@pytest.mark.parametrize("name", ["num_data", "num_parity", "num_parity_blocks", "block_size", "slot_bytes"])
def test_empty_geometries_are_refused_by_name(name):
    numbers = {"num_data": 3, "num_parity": 1, "num_parity_blocks": 2, "block_size": 4, "slot_bytes": 8}
    with pytest.raises(ConfigError, match=f"{name} is 0"):
        StoreGeometry(**(numbers | {name: 0}))
