"""Rebuilds on the device: bit-exact, verified, and for every fault what the CPU's rebuild would have said and done."""

from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
import torch
from host_kernels import LyingKernels, SkippedKernels
from path_world import ALL, LAYOUT, NUM_SLOTS, RANGES

from ghostserve.codes import make_backend, make_code
from ghostserve.parity import CacheLayout, HostArena, SlotRange
from ghostserve.parity.ranges import singles
from ghostserve.recovery.rebuild import Fault, rebuild

pytest_plugins = ["path_fixtures"]

CODES = ["xor", "rs:2", "rs:4", "rdp", "copy"]
SMALL_RING = 1600
SLOT = SlotRange(4, 2, 0, 1, 2)
OTHERS = tuple(s for s in singles(RANGES) if s != SLOT)


def flushed(make_world, *arguments, **more):
    world = make_world(*arguments, **more)
    world.flush()
    return world


def cpu_report(world, lost, ranges=None):
    """What the CPU's rebuild says of the same arenas and the same store; it works on copies."""
    arenas = [HostArena(world.host(rank).copy()) for rank in range(world.shard_map.world_size)]
    for rank in lost:
        arenas[rank].array[:] = 0xFF
    parts = world.parts | {"arenas": arenas, "backend": make_backend("cpu")}
    return rebuild(**parts, lost_ranks=lost, ranges=world.ranges if ranges is None else ranges)


def same_report(a, b):
    return replace(a, seconds=0.0) == replace(b, seconds=0.0)


@pytest.mark.parametrize("mode", ["ring", "zero-copy"])
@pytest.mark.parametrize("code", CODES)
@pytest.mark.parametrize("kind", ALL)
def test_any_ranks_that_the_code_covers_come_back(make_world, kind, code, mode):
    world = flushed(make_world, kind, code, mode=mode)
    for count in range(1, min(world.code.k, 3) + 1):
        for lost in combinations(range(4), count):
            expected = cpu_report(world, lost)
            report = world.rebuild(*lost)
            assert all(world.whole(rank) for rank in range(4))
            assert all(world.only_asked(rank) for rank in lost)
            assert same_report(report, expected)
            assert report.slots == NUM_SLOTS
            assert not report.failed
            for rank in lost:
                world.arenas[rank].tensor.copy_(torch.from_numpy(world.truth[rank]))


@pytest.mark.parametrize("mode", ["ring", "zero-copy"])
@pytest.mark.parametrize(("code", "lost"), [("rs:2", (1,)), ("rs:2", (0, 3)), ("rdp", (1, 2)), ("copy", (0, 3))])
def test_by_the_real_kernels_in_the_interpreter(make_world, code, lost, mode):
    world = flushed(make_world, "interpreter", code, mode=mode)
    assert world.rebuild(*lost).failed == ()
    assert all(world.only_asked(rank) for rank in lost)


def test_the_wipe_is_a_loss(make_world):
    """The twin: without the rebuild the bytes are gone."""
    world = flushed(make_world, "eager")
    world.wipe(1)
    assert not world.whole(1)
    assert world.poisoned(1, RANGES)


@pytest.mark.parametrize("code", ["rs:2", "rs:4", "rdp"])
@pytest.mark.parametrize("kind", ALL)
def test_a_small_ring_takes_many_turns(make_world, kind, code):
    world = flushed(make_world, kind, code, ring_bytes=SMALL_RING if code != "rs:4" else 3000)
    expected = cpu_report(world, (0, 2))
    assert same_report(world.rebuild(0, 2), expected), "nothing had to be done twice"
    assert world.only_asked(0)
    assert world.only_asked(2)


def test_without_the_waits_between_streams_no_byte_is_believed(make_world):
    """The twin of the `lazy` cases: kernels that run before their parity is there compute garbage, and it is seen."""
    world = make_world("lazy")
    world.flush()
    expected = cpu_report(world, (1,))
    world.runtime.deaf = True
    report = world.rebuild(1)
    assert report.bytes_read == 2 * expected.bytes_read, "all slots were computed again, by way of the host"
    assert report.failed == ()
    assert world.only_asked(1)


@pytest.mark.parametrize("mode", ["ring", "zero-copy"])
@pytest.mark.parametrize("code", ["rs:2", "rdp", "copy"])
@pytest.mark.parametrize("kind", ALL)
def test_one_of_two_lost_ranks_is_refilled_alone(make_world, kind, code, mode):
    """As workers do it: each newcomer its own; what is computed on the way (rdp) stays in the ring."""
    world = flushed(make_world, kind, code, mode=mode)
    world.wipe(0, 2)
    assert world.rebuild(0, 2, targets=(2,), wipe=False).failed == ()
    assert world.only_asked(2)
    assert world.poisoned(0, RANGES)
    world.rebuild(0, 2, targets=(0,), wipe=False)
    assert world.only_asked(0)


@pytest.mark.parametrize("code", ["xor", "rs:2"])
@pytest.mark.parametrize("kind", ALL)
def test_damaged_parity_is_gone_round_or_reported(make_world, kind, code):
    world = flushed(make_world, kind, code)
    world.store.payload(SLOT)[0, 0, 3] ^= 1
    expected = cpu_report(world, (1,))
    report = world.rebuild(1)
    assert (report.failed, report.reasons, report.damaged) == (expected.failed, expected.reasons, expected.damaged)
    assert report.damaged == (Fault(4, None, SLOT),)
    assert report.failed == ((SLOT,) if code == "xor" else ())
    assert world.whole(1, OTHERS)
    assert world.poisoned(1, [SLOT]) == (code == "xor")
    assert world.whole(1) == (code == "rs:2")


@pytest.mark.parametrize("code", ["xor", "rs:2", "rdp"])
@pytest.mark.parametrize("kind", ALL)
def test_a_damaged_survivor_is_repaired_or_reported(make_world, kind, code):
    world = flushed(make_world, kind, code)
    world.flip(3, SLOT, byte=5)
    expected = cpu_report(world, (1,))
    report = world.rebuild(1)
    assert (report.failed, report.corrected, report.damaged) == (expected.failed, expected.corrected, expected.damaged)
    if code == "xor":
        assert report.failed == (SLOT,)
        assert world.poisoned(1, [SLOT])
        assert not world.whole(3)
    else:
        assert report.corrected == (Fault(3, 3, SLOT),)
        assert all(world.whole(rank) for rank in range(4))
    assert world.whole(1, OTHERS)


def test_a_forged_record_leaves_poison(make_world):
    """Checksums that fit all inputs but not the lost shard: the device has written bytes that must not stay."""
    for kind in ("eager", "lazy"):
        world = flushed(make_world, kind)
        sums = world.store.records(SLOT).copy()
        sums[0, 1] += np.uint64(1)
        world.store.write(1, SLOT, world.store.payload(SLOT).copy(), sums)
        report = world.rebuild(1)
        assert report.failed == (SLOT,)
        assert report.reasons == ("the rebuilt bytes do not match the recorded checksums",)
        assert world.poisoned(1, [SLOT])
        assert world.whole(1, OTHERS)


def test_kernels_that_do_not_run_rebuild_nothing_by_themselves(make_world):
    world = flushed(make_world, "eager")
    expected = cpu_report(world, (1,))
    world.path._refiller._engine.kernels = SkippedKernels(LAYOUT)
    report = world.rebuild(1)
    assert report.bytes_read == 2 * expected.bytes_read
    assert report.bytes_rebuilt == expected.bytes_rebuilt
    assert world.only_asked(1)


def test_the_comparison_sees_bytes_that_were_never_written(make_world):
    """The twin: kernels that lie about their checksums get past the verification, and not past these tests."""
    world = flushed(make_world, "eager")
    world.path._refiller._engine.kernels = LyingKernels(LAYOUT)
    assert world.rebuild(1).failed == ()
    assert not world.whole(1)


@pytest.mark.parametrize("kind", ALL)
def test_slots_without_a_record_of_this_generation_fail(make_world, kind):
    world = flushed(make_world, kind)
    asked = (SlotRange(0, 2, 3, 0, 4), SlotRange(4, 2, 0, 0, 4), SlotRange(2, 7, 4, 1, 2))
    report = world.rebuild(1, ranges=asked)
    assert report.failed == (asked[0], SlotRange(4, 2, 0, 3, 4), asked[2])
    assert set(report.reasons) == {"no committed parity record of this generation"}
    assert world.only_asked(1, [SlotRange(4, 2, 0, 0, 3)])
    assert report.slots == 9


@pytest.mark.parametrize("code", ["xor", "rs:2"])
def test_more_than_the_code_covers_fails_and_writes_nothing(make_world, code):
    world = flushed(make_world, "eager", code)
    lost = tuple(range(world.code.k + 1))
    report = world.rebuild(*lost)
    assert report.failed == RANGES
    assert all(world.poisoned(rank, RANGES) for rank in lost)


@pytest.mark.parametrize("lost", [(0,), (0, 3), (0, 2, 3), (2, 3)], ids=str)
@pytest.mark.parametrize("kind", ALL)
def test_replicated_kv_is_copied_and_what_nobody_holds_is_computed_once(make_world, kind, lost):
    world = flushed(make_world, kind, "rs:1", heads=2)
    expected = cpu_report(world, lost)
    report = world.rebuild(*lost)
    assert report.failed == ()
    assert (report.bytes_copied, report.bytes_rebuilt) == (expected.bytes_copied, expected.bytes_rebuilt)
    assert all(world.whole(rank) for rank in range(4))
    assert all(world.only_asked(rank) for rank in lost)


def test_a_damaged_replica_is_not_believed(make_world):
    world = flushed(make_world, "eager", "rs:1", heads=2)
    world.flip(1, SLOT)
    report = world.rebuild(0)
    assert report.failed == ()
    assert report.corrected == (Fault(0, 1, SLOT),)
    assert all(world.whole(rank) for rank in range(4))


def test_nothing_asked_is_nothing_done(make_world):
    world = flushed(make_world, "eager")
    report = world.rebuild(1, ranges=())
    assert (report.slots, report.bytes_read, report.failed) == (0, 0, ())
    with pytest.raises(ValueError, match=r"targets \[2\] must be among the lost ranks \[1\]"):
        world.rebuild(1, targets=(2,))
    beyond = SlotRange(6, 1, 2, 0, 1)
    world.store.write(1, beyond, np.zeros((1, 2, 64), np.uint8), np.ones((1, 6), np.uint64))
    with pytest.raises(ValueError, match="the cache has 6 blocks"):
        world.rebuild(1, ranges=[beyond])


def test_auto_goes_by_how_the_parity_lies(make_world):
    """Long runs come by the copy engine, short ones are read by the kernel."""
    layout = CacheLayout.layered(num_layers=4, num_blocks=64, block_size=16, row_bytes=2048)
    ranges = [SlotRange(b, 1, b, 0, 16) for b in range(32)]
    for together in (True, False):
        world = make_world("eager", "xor", world=2, layout=layout, ranges=ranges, num_parity_blocks=64, mode="auto")
        if not together:
            world.ranges = [SlotRange(b, 1, 2 * b, 0, 16) for b in range(32)]
        world.flush()
        world.runtime.log.clear()
        assert world.rebuild(1).failed == ()
        assert world.only_asked(1)
        parity = [entry for entry in world.runtime.log if entry[0] == "copy" and entry[-1] >= 16 * layout.slot_bytes]
        assert bool(parity) == together


def test_an_error_on_the_way_waits_for_what_is_under_way(make_world):
    world = flushed(make_world, "lazy", ring_bytes=SMALL_RING)
    engine = world.path._refiller._engine
    engine.done[1].synchronize = lambda: (_ for _ in ()).throw(RuntimeError("device lost"))
    with pytest.raises(RuntimeError, match="device lost"):
        world.rebuild(1)
    assert all(s.ran == len(s.work) for s in (engine.compute, engine.copies))


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("code", "world_size"), [("xor", 8), ("rs:2", 8), ("rs:4", 8), ("rdp", 8), ("rs:1", 2), ("copy", 8)]
)
@pytest.mark.parametrize("row_bytes", [256, 768, 2048])
def test_shapes_on_the_device(make_world, code, world_size, row_bytes):
    layout = CacheLayout.layered(num_layers=5, num_blocks=40, block_size=16, row_bytes=row_bytes)
    ranges = [SlotRange((7 * b) % 40, 1, b, b % 3, 16 - b % 5) for b in range(32)]
    more = {"layout": layout, "ranges": ranges, "num_parity_blocks": 32, "ring_bytes": 8 << 20}
    world = flushed(make_world, "cuda", code, world=world_size, **more)
    k = make_code(code, world_size).k
    for lost in ((1,), (0, world_size - 1), (0, 1, 5, 6))[: {1: 1, 2: 2}.get(k, 3)]:
        expected = cpu_report(world, lost)
        assert same_report(world.rebuild(*lost), expected)
        assert all(world.only_asked(rank) for rank in lost)
        for rank in lost:
            world.arenas[rank].tensor.copy_(torch.from_numpy(world.truth[rank]))
