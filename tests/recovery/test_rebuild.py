from itertools import combinations

import numpy as np
import pytest

from ghostserve.checkpoint import encode_ranges
from ghostserve.codes import make_backend, make_code
from ghostserve.parity import CacheLayout, HostArena, ParityStore, ShardMap, SlotRange, StoreGeometry, gather, scatter
from ghostserve.parity.ranges import num_slots, singles
from ghostserve.recovery.rebuild import Fault, rebuild

LAYOUT = CacheLayout.layered(num_layers=2, num_blocks=6, block_size=4, row_bytes=16)
POISON = 0xFF
CODES = ["xor", "rs:1", "rs:2", "rdp", "rs:3"]
# Whole blocks, part-filled ones, a single slot; parity blocks that are not the cache's.
RANGES = (
    SlotRange(0, 1, 3, 0, 4),
    SlotRange(4, 2, 0, 0, 3),
    SlotRange(2, 7, 5, 1, 2),
    SlotRange(5, 1, 1, 2, 4),
)


class Group:
    """A TP group without processes whose slots of `RANGES` are committed."""

    def __init__(self, code, world=4, heads=None, ranges=RANGES):
        self.shard_map = ShardMap.for_kv_heads(world, heads or world)
        self.code = make_code(code, self.shard_map.num_shards)
        shards = np.random.default_rng(3).integers(0, POISON, (self.code.n, LAYOUT.total_bytes), dtype=np.uint8)
        self.truth = [shards[self.shard_map.shard_of(rank)] for rank in range(world)]
        self.arenas = [arena.copy() for arena in self.truth]
        geometry = StoreGeometry(self.code.n, self.code.k, 6, LAYOUT.block_size, LAYOUT.slot_bytes)
        self.store = ParityStore.create(geometry)
        self.parts = {
            "store": self.store,
            "code": self.code,
            "backend": make_backend("cpu"),
            "arenas": [HostArena(arena) for arena in self.arenas],
            "layout": LAYOUT,
            "shard_map": self.shard_map,
        }
        encode_ranges(**self.parts, epoch=1, ranges=ranges)

    def wipe(self, *ranks):
        for rank in ranks:
            self.arenas[rank][:] = POISON
            assert (self.arenas[rank] == POISON).all()

    def rebuild(self, *lost, ranges=RANGES, **more):
        self.wipe(*lost)
        return rebuild(**self.parts, lost_ranks=lost, ranges=ranges, **more)

    def whole(self, rank, ranges=RANGES):
        return np.array_equal(gather(self.arenas[rank], LAYOUT, ranges), gather(self.truth[rank], LAYOUT, ranges))

    def poisoned(self, rank, ranges=RANGES):
        return (gather(self.arenas[rank], LAYOUT, ranges) == POISON).all()

    def flip(self, rank, slots, byte=0):
        data = gather(self.arenas[rank], LAYOUT, [slots])
        data[:, byte] ^= 0x40
        scatter(self.arenas[rank], LAYOUT, [slots], data)


@pytest.mark.parametrize("code", CODES)
def test_any_ranks_that_the_code_covers_come_back(code):
    tolerated = make_code(code, 4).k
    for count in range(1, tolerated + 1):
        for lost in combinations(range(4), count):
            group = Group(code)
            report = group.rebuild(*lost)
            assert all(group.whole(rank) for rank in range(4))
            assert (report.failed, report.reasons, report.corrected, report.damaged) == ((), (), (), ())
            assert report.slots == 10
            assert report.bytes_rebuilt == count * 10 * LAYOUT.slot_bytes
            assert report.bytes_copied == 0
            assert report.bytes_read == 4 * 10 * LAYOUT.slot_bytes
            assert report.seconds > 0


def test_a_twin_without_the_rebuild_sees_the_difference():
    group, twin = Group("rs:2"), Group("rs:2")
    group.rebuild(1, 3)
    twin.wipe(1, 3)
    for rank in (1, 3):
        assert group.whole(rank)
        assert twin.poisoned(rank)
        assert not twin.whole(rank)


def test_only_the_asked_slots_are_touched():
    group = Group("rs:1")
    group.rebuild(2)
    expected = np.full_like(group.truth[2], POISON)
    scatter(expected, LAYOUT, RANGES, gather(group.truth[2], LAYOUT, RANGES))
    assert np.array_equal(group.arenas[2], expected)


def test_many_tiles_are_as_good_as_one(monkeypatch):
    monkeypatch.setattr("ghostserve.recovery.rebuild.TILE_SLOTS", 3)
    group = Group("rs:2")
    assert group.rebuild(0, 1).failed == ()
    assert group.whole(0)
    assert group.whole(1)


@pytest.mark.parametrize("code", ["rs:2", "rdp"])
def test_targets_can_be_refilled_one_by_one(code):
    group = Group(code)
    group.wipe(0, 2)
    assert rebuild(**group.parts, lost_ranks=(0, 2), targets=(2,), ranges=RANGES).failed == ()
    assert group.whole(2)
    assert group.poisoned(0)
    rebuild(**group.parts, lost_ranks=(0, 2), targets=(0,), ranges=RANGES)
    assert group.whole(0)


def test_targets_must_be_lost():
    with pytest.raises(ValueError, match=r"targets \[1\] must be among the lost ranks \[0\]"):
        Group("rs:1").rebuild(0, targets=(1,))


@pytest.mark.parametrize("code", CODES)
def test_more_than_the_code_covers_fails_and_writes_nothing(code):
    group = Group(code)
    lost = tuple(range(group.code.k + 1))
    report = group.rebuild(*lost)
    assert report.failed == RANGES
    assert all(f"rebuilds {group.code.k}" in reason for reason in report.reasons)
    assert all(group.poisoned(rank) for rank in lost)


def test_slots_without_a_record_of_this_generation_fail():
    group = Group("rs:1")
    asked = (SlotRange(0, 2, 3, 0, 4), SlotRange(4, 2, 0, 0, 4), SlotRange(2, 7, 4, 1, 2))
    report = group.rebuild(1, ranges=asked)
    assert report.failed == (asked[0], SlotRange(4, 2, 0, 3, 4), asked[2])
    assert set(report.reasons) == {"no committed parity record of this generation"}
    assert group.whole(1, [SlotRange(4, 2, 0, 0, 3)])
    assert group.poisoned(1, report.failed)


@pytest.mark.parametrize("code", ["rs:2", "rdp"])
def test_a_damaged_survivor_is_one_more_erasure_and_is_corrected(code):
    group = Group(code)
    slot = SlotRange(4, 2, 0, 1, 2)
    group.flip(3, slot, byte=5)
    report = group.rebuild(1)
    assert report.failed == ()
    assert report.corrected == (Fault(3, 3, slot),)
    assert report.damaged == ()
    assert all(group.whole(rank) for rank in range(4))


@pytest.mark.parametrize("code", ["xor", "rs:1"])
def test_a_damaged_survivor_beyond_the_code_fails_that_slot_only(code):
    group = Group(code)
    slot = SlotRange(4, 2, 0, 1, 2)
    group.flip(3, slot)
    report = group.rebuild(1)
    assert report.failed == (slot,)
    assert report.reasons == (f"shards [1, 3] are lost or damaged, {group.code} rebuilds 1",)
    assert report.damaged == (Fault(3, 3, slot),)
    assert report.corrected == ()
    assert group.poisoned(1, [slot])
    assert group.whole(1, [s for s in singles(RANGES) if s != slot])


@pytest.mark.parametrize("code", ["rs:2", "rdp", "rs:3"])
def test_damaged_parity_is_gone_round(code):
    group = Group(code)
    slot = SlotRange(0, 1, 3, 2, 3)
    group.store.payload(slot)[0, 0, 3] ^= 1
    report = group.rebuild(2)
    assert report.failed == ()
    assert report.damaged == (Fault(4, None, slot),)
    assert group.whole(2)


@pytest.mark.parametrize("byte", range(LAYOUT.slot_bytes))
def test_every_flipped_byte_of_parity_is_noticed(byte):
    group = Group("xor", ranges=[SlotRange(0, 1, 0, 0, 1)])
    slot = SlotRange(0, 1, 0, 0, 1)
    group.store.payload(slot)[0, 0, byte] ^= 0x80
    report = group.rebuild(0, ranges=[slot])
    assert report.failed == (slot,)
    assert group.poisoned(0, [slot])


def test_different_damage_in_every_slot_is_handled_slot_by_slot():
    group = Group("rs:3")
    group.flip(1, SlotRange(0, 1, 3, 0, 2))
    group.flip(2, SlotRange(0, 1, 3, 1, 3))
    group.flip(3, SlotRange(0, 1, 3, 1, 2))
    group.store.payload(SlotRange(0, 1, 3, 3, 4))[0, :2] ^= 1
    report = group.rebuild(0)
    assert report.failed == (SlotRange(0, 1, 3, 1, 2),), "four shards of that slot are gone"
    assert set(report.corrected) == {
        Fault(1, 1, SlotRange(0, 1, 3, 0, 1)),
        Fault(2, 2, SlotRange(0, 1, 3, 2, 3)),
    }
    intact = [s for s in singles(RANGES) if s != report.failed[0]]
    assert all(group.whole(rank, intact) for rank in range(4))
    assert group.poisoned(0, report.failed)


def test_a_forged_record_is_refused_at_the_end():
    """Checksums that fit all inputs but not the lost shard: computed bytes are verified too."""
    group = Group("rs:1")
    slot = SlotRange(2, 7, 5, 1, 2)
    sums = group.store.records(slot).copy()
    sums[0, 1] += np.uint64(1)
    group.store.write(1, slot, group.store.payload(slot).copy(), sums)
    report = group.rebuild(1)
    assert report.failed == (slot,)
    assert report.reasons == ("the rebuilt bytes do not match the recorded checksums",)
    assert group.poisoned(1, [slot])


def test_replicated_kv_is_copied():
    group = Group("rs:1", world=4, heads=2)
    report = group.rebuild(0, 3)
    assert report.failed == ()
    assert (report.bytes_copied, report.bytes_rebuilt) == (2 * 10 * LAYOUT.slot_bytes, 0)
    assert all(group.whole(rank) for rank in range(4))


def test_a_shard_whose_holders_are_all_lost_is_computed_once_and_written_to_both():
    group = Group("rs:1", world=4, heads=2)
    report = group.rebuild(0, 2, 3)
    assert report.failed == ()
    assert report.bytes_copied == 10 * LAYOUT.slot_bytes
    assert report.bytes_rebuilt == 2 * 10 * LAYOUT.slot_bytes
    assert all(group.whole(rank) for rank in range(4))


def test_a_damaged_replica_is_not_copied_but_corrected_from_parity():
    group = Group("rs:1", world=4, heads=2)
    slot = SlotRange(5, 1, 1, 2, 3)
    group.flip(1, slot)
    report = group.rebuild(0)
    assert report.failed == ()
    assert report.corrected == (Fault(0, 1, slot),)
    assert all(group.whole(rank) for rank in range(4))


def test_a_damaged_replica_is_corrected_from_another():
    group = Group("rs:1", world=6, heads=2)
    slot = SlotRange(5, 1, 1, 2, 3)
    group.flip(1, slot)
    report = group.rebuild(0)
    assert report.corrected == (Fault(0, 1, slot),)
    assert report.bytes_rebuilt == 0
    assert all(group.whole(rank) for rank in range(6))


@pytest.mark.parametrize("rank", [1, 2, 3, 4, 5])
def test_every_live_copy_is_verified_and_corrected(rank):
    """Also one of a shard that nobody lost, and one that the rebuild has no need to read."""
    group = Group("rs:1", world=6, heads=2)
    slot = SlotRange(5, 1, 1, 2, 3)
    group.flip(rank, slot)
    report = group.rebuild(0)
    assert report.corrected == (Fault(group.shard_map.shard_of(rank), rank, slot),)
    assert (report.failed, report.damaged, report.bytes_rebuilt) == ((), (), 0)
    assert all(group.whole(rank) for rank in range(6))


def test_copies_that_are_all_damaged_are_corrected_from_parity():
    group = Group("rs:1", world=6, heads=2)
    slot = SlotRange(5, 1, 1, 2, 3)
    for rank in (3, 4, 5):
        group.flip(rank, slot, byte=rank)
    report = group.rebuild(0)
    assert set(report.corrected) == {Fault(1, rank, slot) for rank in (3, 4, 5)}
    assert (report.failed, report.damaged) == ((), ())
    assert all(group.whole(rank) for rank in range(6))


def test_copies_that_are_all_damaged_beyond_the_code_fail_that_slot_only():
    """The slot of the survivors is lost too: whoever owns it must be computed anew."""
    group = Group("rs:1", world=6, heads=2)
    slot = SlotRange(5, 1, 1, 2, 3)
    for rank in (3, 4, 5):
        group.flip(rank, slot, byte=rank)
    group.store.payload(slot)[0, 0, 3] ^= 1
    report = group.rebuild(0)
    assert report.failed == (slot,)
    assert report.reasons == (f"shards [1, 2] are lost or damaged, {group.code} rebuilds 1",)
    assert report.corrected == ()
    assert group.whole(0)


def test_nothing_to_do_is_done_at_once():
    report = Group("rs:1").rebuild(0, ranges=())
    assert (report.slots, report.bytes_read, report.failed) == (0, 0, ())
    assert num_slots(RANGES) == 10
