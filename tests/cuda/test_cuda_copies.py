"""Copies of every shard on the device, in host memory and in a file: the same bytes as the CPU's, and no more read.

The cases of test_flush.py and test_refill.py that hold for every code run over copies there.
"""

import contextlib
import os
import threading
from itertools import combinations

import numpy as np
import pytest
import torch
from path_world import ALL, LAYOUT, NUM_SLOTS, RANGES, quiet

from ghostserve.codes import make_code
from ghostserve.cuda.file_payload import FilePayload
from ghostserve.errors import CudaError, StaleEpochError
from ghostserve.parity import SlotRange

pytest_plugins = ["path_fixtures"]

SMALL_RING = 2000
"""Frames of one slot."""
SLOT = SlotRange(4, 2, 0, 1, 2)


@pytest.fixture
def file_world(make_world, tmp_path):
    return lambda kind, **more: make_world(kind, "copy", folder=tmp_path, **more)


def same_store(world):
    reference = world.reference()
    same = np.array_equal(reference._records, world.store._records)
    same &= np.array_equal(reference.payload(RANGES), world.store.payload(RANGES))
    reference.close()
    return same


# ---- any store: a rebuild reads what was lost, and nothing else


@pytest.mark.parametrize("folder", ["memory", "file"])
@pytest.mark.parametrize("lost", [(1,), (0, 3), (1, 2), (0, 1, 3), (0, 1, 2, 3)], ids=str)
def test_a_rebuild_fetches_the_copies_of_the_lost_shards_alone(make_world, tmp_path, lost, folder):
    world = make_world("eager", "copy", folder=tmp_path if folder == "file" else None)
    world.flush()
    world.runtime.log.clear()
    report = world.rebuild(*lost)
    assert report.failed == ()
    assert all(world.only_asked(rank) for rank in lost)
    assert fetched(world) == report.bytes_read == len(lost) * NUM_SLOTS * LAYOUT.slot_bytes


def fetched(world):
    """Bytes that came up from the store, or from the mirror of a file."""
    payload = world.path._refiller._engine.payload
    begin, nbytes = payload.address, world.store.geometry.payload_bytes
    if begin is None:
        begin, nbytes = payload._mirror.ctypes.data, payload._mirror.nbytes
    total = 0
    for name, *what in world.runtime.log:
        if name in ("copy", "copy_rows") and begin <= what[2] < begin + nbytes:
            total += int(np.prod(what[3:]))
    return total


@pytest.mark.parametrize("folder", ["memory", "file"])
@pytest.mark.parametrize("kind", ALL)
def test_a_damaged_copy_is_reported_and_not_used(make_world, tmp_path, kind, folder):
    world = make_world(kind, "copy", folder=tmp_path if folder == "file" else None)
    world.flush()
    damage(world, SLOT, shard=1)
    report = world.rebuild(1)
    assert report.failed == (SLOT,)
    assert world.poisoned(1, [SLOT])
    world.wipe(2)
    assert world.rebuild(2, wipe=False).failed == (), "the other copies of the slot are whole"
    assert world.only_asked(2)


def damage(world, slot, shard):
    at = (int(world.store.store_rows([slot])[0]) * world.code.k + shard) * LAYOUT.slot_bytes
    if len(world.store.fds) == 1:
        world.store.payload(slot)[0, shard, 0] ^= 1
    else:
        (before,) = os.pread(world.store.fds[1], 1, at)
        os.pwrite(world.store.fds[1], bytes([before ^ 1]), at)


# ---- a store in a file


@pytest.mark.parametrize("mode", ["ring", "zero-copy", "auto"])
@pytest.mark.parametrize("ring_bytes", [1 << 20, SMALL_RING])
@pytest.mark.parametrize("kind", ALL)
def test_the_file_is_what_the_cpu_makes_of_it(file_world, kind, ring_bytes, mode):
    world = file_world(kind, ring_bytes=ring_bytes, mode=mode)
    stages = []
    world.flush(on_stage=stages.append)
    assert same_store(world)
    assert stages.count("begin") == stages.count("committed") == (NUM_SLOTS if ring_bytes == SMALL_RING else 1)


def test_by_the_real_kernels_in_the_interpreter(file_world):
    world = file_world("interpreter")
    world.flush()
    assert same_store(world)
    assert world.rebuild(0, 3).failed == ()
    assert world.only_asked(0)
    assert world.only_asked(3)


@pytest.mark.parametrize("ring_bytes", [1 << 20, SMALL_RING])
@pytest.mark.parametrize("kind", ALL)
def test_any_ranks_come_back_from_the_file(file_world, kind, ring_bytes):
    world = file_world(kind, ring_bytes=ring_bytes)
    world.flush()
    for count in range(1, 5):
        for lost in combinations(range(4), count):
            report = world.rebuild(*lost)
            assert report.failed == ()
            assert report.bytes_read == count * NUM_SLOTS * LAYOUT.slot_bytes, "nothing had to be done twice"
            assert all(world.only_asked(rank) for rank in lost)
            for rank in lost:
                world.arenas[rank].tensor.copy_(torch.from_numpy(world.truth[rank]))


def test_with_the_kernels_on_another_stream_the_file_is_wrong(file_world):
    """The twin of the `lazy` cases: what was not waited for is not in the file."""
    world = file_world("lazy")
    world.runtime.use = lambda stream: contextlib.nullcontext()
    with contextlib.suppress(CudaError):  # checksums that nobody has taken yet
        world.flush()
    assert not same_store(world)


def test_with_more_tiles_under_way_than_frames_the_file_is_wrong(file_world, monkeypatch):
    """The twin of the small ring: a place in the mirror that is used again before it was written out."""
    monkeypatch.setattr(FilePayload, "turns", 8)
    world = file_world("eager", ring_bytes=SMALL_RING)
    world.flush()
    assert not same_store(world)


def test_nothing_is_committed_before_the_sync(file_world, monkeypatch):
    world = file_world("lazy", ring_bytes=SMALL_RING)
    seen, sync = [], os.fdatasync
    monkeypatch.setattr(os, "fdatasync", lambda fd: (seen.append(world.store.committed_slots(RANGES).any()), sync(fd)))
    world.flush(on_stage=lambda stage: seen.append("written") if stage == "committed" else None)
    assert seen == ["written"] * NUM_SLOTS + [False], "one sync, when all is written and nothing committed"
    assert world.store.committed_slots(RANGES).all()


def test_a_fence_before_the_sync_ends_leaves_all_uncommitted(file_world, monkeypatch):
    world = file_world("lazy")
    monkeypatch.setattr(os, "fdatasync", lambda fd: world.store.advance(2))
    with pytest.raises(StaleEpochError):
        world.flush()
    assert not world.store.committed_slots(RANGES).any()


@pytest.mark.parametrize("call", ["pwrite", "fdatasync"])
def test_a_disk_that_refuses_leaves_all_uncommitted_and_nothing_under_way(file_world, monkeypatch, call):
    world = file_world("lazy", ring_bytes=SMALL_RING)
    real, calls = getattr(os, call), []

    def refuse(*arguments):
        calls.append(call)
        if call == "fdatasync" or len(calls) == 4:
            raise OSError(28, "No space left on device")
        return real(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(os, call, refuse)
        with pytest.raises(OSError, match="No space"):
            world.flush()
    assert all(s.ran == len(s.work) for s in world.path._flusher._streams)
    assert not world.store.committed_slots(RANGES).any()
    world.flush(RANGES[:1])
    committed = world.store.committed_slots(RANGES)
    assert committed.tolist() == [True] * 4 + [False] * 6, "of the failed flush nothing is committed later on"


def test_the_model_goes_on_while_the_disk_is_slow(file_world, monkeypatch):
    world = file_world("eager")
    syncing, go_on, sync = threading.Event(), threading.Event(), os.fdatasync
    monkeypatch.setattr(os, "fdatasync", lambda fd: (syncing.set(), go_on.wait(60), sync(fd)))
    flush = threading.Thread(target=world.path.encode, args=(1, RANGES, None, quiet))
    flush.start()
    assert syncing.wait(60)
    world.path.stage(1, RANGES)
    assert world.path.mark() is not None
    assert flush.is_alive()
    go_on.set()
    flush.join(60)
    assert same_store(world)


def test_a_row_of_copies_of_32_shards_has_room_in_the_ring(make_world):
    world = make_world("eager", "copy", world=32)
    assert world.code.k == make_code("copy", 32).k == 32
    world.flush()
    assert same_store(world)
    assert world.rebuild(0, 13, 31).failed == ()
    assert all(world.only_asked(rank) for rank in (0, 13, 31))
