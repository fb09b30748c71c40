from collections.abc import Callable

import numpy as np
import pytest

from ghostserve.checkpoint import encode_ranges, scrubber
from ghostserve.checkpoint.scrubber import Scrubber
from ghostserve.codes import make_backend, make_code
from ghostserve.parity import CacheLayout, HostArena, ParityStore, ShardMap, SlotRange, StoreGeometry, gather, scatter
from ghostserve.parity.reader import Fault

LAYOUT = CacheLayout.layered(num_layers=2, num_blocks=6, block_size=4, row_bytes=16)
RANGES = (SlotRange(0, 1, 3, 0, 4), SlotRange(4, 2, 0, 0, 3), SlotRange(2, 7, 5, 1, 2))
SLOT = SlotRange(4, 2, 0, 1, 2)


class Disturbed(HostArena):
    """Something happens in the middle of the first reading."""

    happens: Callable[[], object] = staticmethod(lambda: None)

    def gather(self, layout, ranges, out=None):
        happens, self.happens = self.happens, lambda: None
        happens()
        return super().gather(layout, ranges, out)


class Group:
    def __init__(self, world=4, heads=4):
        self.shard_map = ShardMap.for_kv_heads(world, heads)
        self.code = make_code("rs:2", heads)
        rng = np.random.default_rng(3)
        shards = rng.integers(0, 255, (heads, LAYOUT.total_bytes), dtype=np.uint8)
        self.caches = [shards[self.shard_map.shard_of(rank)].copy() for rank in range(world)]
        geometry = StoreGeometry(heads, 2, 6, LAYOUT.block_size, LAYOUT.slot_bytes)
        self.store = ParityStore.create(geometry)
        self.arenas = [Disturbed(cache) for cache in self.caches]
        self.live = True
        self.parts = {
            "store": self.store, "backend": make_backend("cpu"), "arenas": self.arenas, "layout": LAYOUT,
            "shard_map": self.shard_map,
        }  # fmt: skip
        self.encode(RANGES)

    def encode(self, ranges):
        encode_ranges(**self.parts, code=self.code, epoch=self.store.epoch, ranges=ranges)

    def check(self, kind=Scrubber):
        return kind(**self.parts, held=lambda slot: self.live).check(RANGES)

    def write(self, rank, slot, mask=0x40):
        data = gather(self.caches[rank], LAYOUT, [slot])
        data[:, 5] ^= mask
        scatter(self.caches[rank], LAYOUT, [slot], data)


@pytest.mark.parametrize(("world", "heads"), [(4, 4), (4, 2)])
def test_nothing_is_found_where_nothing_is_wrong(world, heads):
    report = Group(world, heads).check()
    assert (report.slots, report.faults, report.withdrawn) == (8, (), 0)
    assert report.bytes_read == 8 * (world + 2) * LAYOUT.slot_bytes


@pytest.mark.parametrize("rank", range(4))
@pytest.mark.parametrize("heads", [4, 2])
def test_damage_of_any_ranks_bytes_is_found(rank, heads):
    group = Group(4, heads)
    group.write(rank, SLOT)
    assert group.check().faults == (Fault(group.shard_map.shard_of(rank), rank, SLOT),)


@pytest.mark.parametrize("index", [0, 1])
def test_damage_of_parity_is_found(index):
    group = Group()
    group.store.payload(SLOT)[0, index, 7] ^= 1
    assert group.check().faults == (Fault(4 + index, None, SLOT),)


def test_slots_that_are_not_committed_are_passed_over():
    group = Group()
    group.write(1, SLOT)
    group.store.begin(group.store.epoch, SLOT)
    report = group.check()
    assert (report.slots, report.faults, report.withdrawn) == (7, (), 0)
    assert report.uncommitted == (SLOT,)


def test_the_pieces_are_the_whole(monkeypatch):
    """Pieces of three slots: what is found does not depend on where they are cut."""
    monkeypatch.setattr(scrubber, "PIECE_BYTES", 3 * 6 * LAYOUT.slot_bytes)
    group = Group()
    group.write(1, SLOT)
    group.store.begin(group.store.epoch, RANGES[2])
    pieces = list(Scrubber(**group.parts, held=lambda slot: True).walk(RANGES))
    assert [piece.slots + len(piece.uncommitted) for piece in pieces] == [3, 3, 2]
    whole = group.check()
    assert sum(pieces, start=scrubber.ScrubReport(0, 0, (), 0)) == whole
    assert (whole.slots, whole.faults, whole.uncommitted) == (7, (Fault(1, 1, SLOT),), (RANGES[2],))


def rewritten(group):
    group.write(0, SLOT)
    group.encode([SLOT])


def reused(group):
    group.write(0, SLOT)
    group.encode([SlotRange(SLOT.block, SLOT.generation + 1, SLOT.parity_block, SLOT.start, SLOT.stop)])


def begun(group):
    group.write(0, SLOT)
    group.store.begin(group.store.epoch, SLOT)


def freed(group):
    """The block is another request's, which has written KV, but nothing of it is flushed yet: the record is whole."""
    group.write(0, SLOT)
    group.live = False


def fenced(group):
    group.write(0, SLOT)
    group.store.advance(group.store.epoch + 1)


CHANGES = [rewritten, reused, begun, freed, fenced]


@pytest.mark.parametrize("change", CHANGES)
def test_what_changes_during_the_check_is_no_finding(change):
    group = Group()
    group.arenas[0].happens = lambda: change(group)
    report = group.check()
    assert report.faults == ()
    assert report.withdrawn > 0


class Hasty(Scrubber):
    """The twin: a mismatch is a finding."""

    def _stands(self, *arguments):
        return True


@pytest.mark.parametrize("change", CHANGES)
def test_a_scrubber_that_does_not_look_again_finds_what_is_not_there(change):
    group = Group()
    group.arenas[0].happens = lambda: change(group)
    assert group.check(Hasty).faults
