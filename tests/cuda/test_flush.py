"""Flushes on the device against the CPU's: the same bytes in the store, whatever is cut, late or fenced."""

import contextlib

import numpy as np
import pytest
from host_kernels import HostKernels, SkippedKernels
from path_world import ALL, LAYOUT, POISON, RANGES

from ghostserve.cuda import flush
from ghostserve.cuda.flush import consecutive_runs
from ghostserve.cuda.ring import TURNS
from ghostserve.errors import ConfigError, CudaError, StaleEpochError
from ghostserve.parity import CacheLayout, ParityStore, SlotRange

pytest_plugins = ["path_fixtures"]

CODES = ["xor", "rs:2", "rs:4", "rdp", "copy"]
MODES = ["ring", "zero-copy"]
# Frames of one slot (ring) or a few (zero-copy): frames are used again and again.
SMALL_RING = 1600


def same_store(world):
    reference = world.reference()
    same = np.array_equal(reference.region.array, world.store.region.array)
    reference.close()
    return same


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("code", CODES)
@pytest.mark.parametrize("kind", ALL)
def test_the_store_is_what_the_cpu_makes_of_it(make_world, kind, code, mode):
    world = make_world(kind, code, mode=mode)
    assert not same_store(world)
    world.flush()
    assert same_store(world)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("code", ["rs:2", "rdp", "copy"])
def test_by_the_real_kernels_in_the_interpreter(make_world, code, mode):
    world = make_world("interpreter", code, mode=mode)
    world.flush()
    assert same_store(world)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", ALL)
def test_a_small_ring_takes_many_turns(make_world, kind, mode):
    world = make_world(kind, mode=mode, ring_bytes=SMALL_RING)
    stages = []
    world.flush(on_stage=stages.append)
    assert same_store(world)
    tiles = stages.count("begin")
    assert tiles == {"ring": 10, "zero-copy": 5}[mode]
    assert stages.count("encoded") == stages.count("committed") == tiles
    # So many are under way before the first is committed; then each commit makes room for one.
    turns = min(TURNS, tiles)
    assert stages[: turns + 2] == ["begin"] * turns + ["encoded", "committed"]


def test_with_the_kernels_on_another_stream_it_is_wrong(make_world):
    """The twin of all `lazy` cases: they do notice a copy that does not wait for its kernel."""
    world = make_world("lazy", mode="ring")
    world.runtime.use = lambda stream: contextlib.nullcontext()
    with contextlib.suppress(CudaError):  # checksums that nobody has taken yet
        world.flush()
    assert not same_store(world)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("deaf", [False, True])
def test_slots_are_read_after_the_step_that_writes_them(make_world, deaf, mode):
    world = make_world("lazy", mode=mode, deaf=deaf)
    final = [a.tensor.clone() for a in world.arenas]
    world.wipe(*range(4))
    with world.runtime.model():
        for arena, content in zip(world.arenas, final, strict=True):
            world.runtime.lazy(lambda a=arena, c=content: a.tensor.copy_(c))
        after = world.path.mark()
    world.flush(after=after)
    assert same_store(world) != deaf


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", ALL)
def test_a_fence_between_begin_and_commit_leaves_the_slots_uncommitted(make_world, kind, mode):
    world = make_world(kind, mode=mode, ring_bytes=SMALL_RING)
    world.flush()
    assert world.store.committed_slots(RANGES).all()
    seen = []

    def fence(stage):
        seen.append(stage)
        if seen.count("encoded") == 2:
            world.store.advance(2)

    with pytest.raises(StaleEpochError):
        world.flush(on_stage=fence)
    assert seen.count("committed") == 1
    begun = {"ring": TURNS + 1, "zero-copy": 10}[mode]
    committed = world.store.committed_slots(RANGES)
    assert committed.sum() == (1 if mode == "ring" else 2) + 10 - begun


def test_without_the_epoch_check_they_would_be_committed(make_world):
    class Careless(ParityStore):
        def _check_epoch(self, epoch):
            pass

    for kind, expected in ((ParityStore, False), (Careless, True)):
        world = make_world("eager")
        world.store.__class__ = kind
        try:
            world.flush(on_stage=lambda stage, store=world.store: store.advance(2))
        except StaleEpochError:
            assert not expected
        assert world.store.committed_slots(RANGES).all() == expected


def test_a_fenced_epoch_touches_nothing(make_world):
    world = make_world("eager")
    world.store.advance(2)
    before = world.store.region.array.copy()
    with pytest.raises(StaleEpochError):
        world.flush(epoch=1)
    assert np.array_equal(world.store.region.array, before)


@pytest.mark.parametrize("mode", MODES)
def test_a_kernel_that_did_not_run_is_noticed(make_world, mode):
    world = make_world("eager", kernels=SkippedKernels(LAYOUT), mode=mode)
    with pytest.raises(CudaError, match="did it run"):
        world.flush()
    assert not world.store.committed_slots(RANGES).any()


@pytest.mark.parametrize(
    "slots", [SlotRange(6, 1, 0, 0, 1), SlotRange(-1, 1, 0, 0, 1), SlotRange(0, 1, 6, 0, 1), SlotRange(0, 1, 0, 3, 5)]
)
def test_slots_that_do_not_exist_are_refused_before_anything_is_begun(make_world, slots):
    world = make_world("eager")
    before = world.store.region.array.copy()
    with pytest.raises(
        ValueError, match=r"outside a store|the cache has 6 blocks|block -1, generation 1: both must be"
    ):
        world.flush([slots])
    assert np.array_equal(world.store.region.array, before)


def test_an_error_on_the_way_waits_for_what_is_under_way(make_world):
    """After a raise nothing may reach the store: the coordinator believes that this rank is at rest."""
    world = make_world("lazy", mode="ring", ring_bytes=SMALL_RING)

    def fail(stage):
        if stage == "committed":
            raise RuntimeError("the disk of the log is full")

    with pytest.raises(RuntimeError, match="the log"):
        world.flush(on_stage=fail)
    assert all(s.ran == len(s.work) for s in world.path._flusher._streams)


def test_no_slots_are_no_work(make_world):
    world = make_world("eager", kernels=HostKernels(LAYOUT))
    world.flush([], on_stage=lambda stage: pytest.fail(stage))
    assert world.path._flusher._kernels.launches == 0


def test_replicas_next_by_are_read_rather_than_those_afar(make_world):
    world = make_world("eager", "rs:1", heads=2)
    world.path.connect(1, world.arenas)
    world.arenas[0].tensor.fill_(POISON)
    world.flush()
    assert same_store(world)


def test_auto_goes_by_how_many_slots_and_how_they_lie(make_world):
    chooses = make_world("eager", mode="auto").path._flusher._writes_direct
    scattered = [SlotRange(b, 1, b, 0, 1) for b in range(flush.ZERO_COPY_SLOTS)]
    assert chooses(scattered)
    assert chooses(scattered + scattered)
    assert chooses([SlotRange(0, 1, 0, 0, flush.ZERO_COPY_SLOTS)])
    assert not chooses([SlotRange(0, 1, 0, 0, flush.ZERO_COPY_SLOTS + 1)])


def test_auto_copies_long_rows_with_the_copy_engine_sooner(make_world):
    """Copies of all shards: a row of them is several of parity."""
    world = make_world("eager", mode="auto")
    chooses = world.path._flusher._writes_direct
    world.path._flusher._payload.row_bytes = 4 * flush.ZERO_COPY_ROW_BYTES
    fit = flush.ZERO_COPY_SLOTS // 4
    assert chooses([SlotRange(0, 1, 0, 0, fit)])
    assert not chooses([SlotRange(0, 1, 0, 0, fit + 1)])
    assert chooses([SlotRange(b, 1, b, 0, 1) for b in range(1000)]), "scattered slots"
    assert not chooses([SlotRange(b, 1, b, 0, 2) for b in range(1000)]), "of which two together are worth a copy"


def test_a_ring_too_small_for_one_slot_is_refused_with_its_numbers(make_world):
    with pytest.raises(
        ConfigError, match=r"the GPU ring of 1000 B is too small for 3 frames of one slot's parity, 128 B each"
    ):
        make_world("eager", ring_bytes=1000)


def test_runs_are_as_few_as_can_be_and_cover_every_slot():
    random = np.random.default_rng(5)
    for _ in range(50):
        rows = random.permutation(60)[: random.integers(1, 60)].astype(np.int64)
        for order in (rows, np.sort(rows)):
            runs = consecutive_runs(order)
            moved = {first + i: row + i for first, row, count in runs for i in range(count)}
            assert [moved[place] for place in range(len(order))] == order.tolist()
        # In the store's order there is one for each row whose neighbour below is not asked for.
        assert len(runs) == len([r for r in rows if r - 1 not in rows])
    assert consecutive_runs(np.array([], dtype=np.int64)) == []


@pytest.mark.gpu
@pytest.mark.parametrize("mode", [*MODES, "auto"])
@pytest.mark.parametrize(
    ("code", "world_size"), [("xor", 8), ("rs:2", 8), ("rs:4", 8), ("rdp", 8), ("rs:1", 2), ("copy", 8)]
)
@pytest.mark.parametrize("row_bytes", [256, 768, 2048])
def test_shapes_on_the_device(make_world, code, world_size, row_bytes, mode):
    layout = CacheLayout.layered(num_layers=5, num_blocks=40, block_size=16, row_bytes=row_bytes)
    ranges = [SlotRange((7 * b) % 40, 1, b, b % 3, 16 - b % 5) for b in range(32)]
    world = make_world(
        "cuda",
        code,
        world=world_size,
        layout=layout,
        ranges=ranges,
        num_parity_blocks=32,
        mode=mode,
        ring_bytes=8 << 20,
    )
    world.flush()
    assert same_store(world)
    world.wipe(0)
    world.flush()
    assert not same_store(world), "the twin: other bytes give another store"
