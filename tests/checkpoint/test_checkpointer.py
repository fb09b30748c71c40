import threading

import numpy as np
import pytest

from ghostserve.checkpoint import Checkpointer, FlushTask, encode_ranges
from ghostserve.codes import checksum_reference, make_backend, make_code
from ghostserve.codes.reference import naive_parity
from ghostserve.errors import StaleEpochError, StoreMismatchError
from ghostserve.parity import CacheLayout, HostArena, ParityStore, ShardMap, SlotRange, StoreGeometry, gather

LAYOUT = CacheLayout.layered(num_layers=2, num_blocks=6, block_size=4, row_bytes=16)
CODES = ["xor", "rdp", "rs:1", "rs:2", "rs:3"]


class Group:
    """A TP group without processes: filled arenas, an empty store, and what `encode_ranges` wants of them."""

    def __init__(self, code="rs:2", world=4, heads=4):
        shard_map = ShardMap.for_kv_heads(world, heads)
        made = make_code(code, shard_map.num_shards)
        rng = np.random.default_rng(7)
        shards = rng.integers(0, 256, (shard_map.num_shards, LAYOUT.total_bytes), dtype=np.uint8)
        self.arenas = [shards[shard_map.shard_of(rank)].copy() for rank in range(world)]
        geometry = StoreGeometry(made.n, made.k, LAYOUT.num_blocks, LAYOUT.block_size, LAYOUT.slot_bytes)
        self.store = ParityStore.create(geometry)
        self.parts = {
            "store": self.store,
            "code": made,
            "backend": make_backend("cpu"),
            "arenas": [HostArena(arena) for arena in self.arenas],
            "layout": LAYOUT,
            "shard_map": shard_map,
        }


@pytest.fixture
def group():
    made = Group()
    yield made
    made.store.close()


def whole(block, generation=1):
    return SlotRange(block, generation, block, 0, LAYOUT.block_size)


@pytest.mark.parametrize("code", CODES)
def test_parity_and_checksums_are_those_of_the_reference(code):
    group = Group(code)
    made = group.parts["code"]
    ranges = [SlotRange(5, 3, 1, 1, 3), SlotRange(0, 1, 2, 0, 4), SlotRange(2, 1, 3, 3, 4)]
    encode_ranges(**group.parts, epoch=1, ranges=ranges)
    shards = [gather(arena, LAYOUT, ranges) for arena in group.arenas]
    parity = naive_parity(made, shards)
    assert group.store.committed_slots(ranges).all()
    assert np.array_equal(group.store.payload(ranges), np.stack(parity, axis=1))
    sums = np.stack([checksum_reference(s) for s in (*shards, *parity)], axis=1)
    assert np.array_equal(group.store.records(ranges), sums)
    assert group.store.committed(5, 3, 1).tolist() == [False, True, True, False]


def test_chunks_of_many_tiles_equal_slots_one_by_one(group, monkeypatch):
    monkeypatch.setattr("ghostserve.checkpoint.encoding.TILE_SLOTS", 5)
    ranges = [whole(block) for block in range(6)]
    encode_ranges(**group.parts, epoch=1, ranges=ranges)
    other = Group()
    for block in range(6):
        for slot in range(4):
            encode_ranges(**other.parts, epoch=1, ranges=[SlotRange(block, 1, block, slot, slot + 1)])
    assert np.array_equal(group.store.region.array, other.store.region.array)


def test_every_tile_tells_its_stages(group, monkeypatch):
    monkeypatch.setattr("ghostserve.checkpoint.encoding.TILE_SLOTS", 4)
    seen = []

    def on_stage(stage):
        seen.append((stage, sum(group.store.committed(block, 1, block).all() for block in range(2))))

    encode_ranges(**group.parts, epoch=1, ranges=[whole(0), whole(1)], on_stage=on_stage)
    stages = [("begin", 0), ("encoded", 0), ("committed", 1), ("begin", 1), ("encoded", 1), ("committed", 2)]
    assert seen == stages


def test_replicated_shards_are_read_from_whoever_lives():
    group = Group("rs:1", world=4, heads=2)
    whole_store = Group("rs:1", world=4, heads=2)
    encode_ranges(**whole_store.parts, epoch=1, ranges=[whole(0)])
    group.arenas[0][:] = 0xFF
    encode_ranges(**group.parts, epoch=1, ranges=[whole(0)], dead={0, 3})
    assert np.array_equal(group.store.region.array, whole_store.store.region.array)
    with pytest.raises(ValueError, match=r"shards \[1\] have no live holder"):
        encode_ranges(**group.parts, epoch=1, ranges=[whole(0)], dead={2, 3})


def test_parts_that_do_not_belong_together_are_refused(group):
    wrong = {
        "code": make_code("rs:1", 4),
        "layout": CacheLayout.layered(2, 6, 4, 8),
        "shard_map": ShardMap(4, 2),
        "arenas": group.parts["arenas"][:3],
    }
    for name, part in wrong.items():
        with pytest.raises(StoreMismatchError):
            encode_ranges(**(group.parts | {name: part}), epoch=1, ranges=[whole(0)])


def test_a_fenced_epoch_encodes_nothing(group):
    group.store.advance(2)
    with pytest.raises(StaleEpochError):
        encode_ranges(**group.parts, epoch=1, ranges=[whole(0)])
    assert not group.store.committed(0, 1, 0).any()


def encoder(group, **changed):
    """The two things that a checkpointer needs of `group`."""
    parts = group.parts | changed
    return {
        "encode": lambda epoch, ranges, after, on_stage: encode_ranges(
            **parts, epoch=epoch, ranges=ranges, on_stage=on_stage
        ),
        "current_epoch": lambda: group.store.epoch,
    }


class Calls:
    def __init__(self):
        self.done, self.errors = [], []

    def on_done(self, epoch, task_ids):
        self.done.append((epoch, task_ids))

    def on_error(self, epoch, task, error):
        self.errors.append((epoch, task.task_id, error))


@pytest.fixture
def calls():
    return Calls()


@pytest.fixture
def checkpointer(group, calls):
    made = Checkpointer(rank=0, **encoder(group), on_done=calls.on_done, on_error=calls.on_error, queue_tasks=4)
    yield made
    made.close()


def task(number, *ranges):
    return FlushTask(number, step=number, encoder=0, ranges=ranges)


def test_tasks_are_committed_in_order_and_acked(checkpointer, group, calls):
    for number in range(6):
        checkpointer.submit(1, task(number, whole(number)))
    assert checkpointer.drain(10)
    assert calls.done == [(1, (number,)) for number in range(6)]
    assert all(group.store.committed(block, 1, block).all() for block in range(6))
    assert calls.errors == []


def test_every_task_is_encoded_after_its_own_mark(calls):
    seen = []

    def encode(epoch, ranges, after, on_stage):
        on_stage("begin")
        seen.append((epoch, ranges, after))

    parts = {"encode": encode, "current_epoch": lambda: 1, "on_stage": seen.append}
    checkpointer = Checkpointer(rank=0, **parts, on_done=calls.on_done, on_error=calls.on_error)
    checkpointer.submit(1, task(0, whole(0)), "step 0 has ended")
    checkpointer.submit(1, task(1, whole(1)))
    assert checkpointer.drain(10)
    checkpointer.close()
    assert seen == ["begin", (1, (whole(0),), "step 0 has ended"), "begin", (1, (whole(1),), None)]


def test_an_error_is_reported_and_the_next_task_runs(checkpointer, calls):
    checkpointer.submit(1, task(0, SlotRange(99, 1, 0, 0, 1)))
    checkpointer.submit(1, task(1, whole(1)))
    assert checkpointer.drain(10)
    assert calls.done == [(1, (1,))]
    ((epoch, number, error),) = calls.errors
    assert (epoch, number) == (1, 0)
    assert isinstance(error, ValueError)


class GatedBackend:
    """Holds the first run until it is let go."""

    def __init__(self):
        self.inner = make_backend("cpu")
        self.running, self.go = threading.Event(), threading.Event()

    def run(self, plan, inputs, outputs):
        self.running.set()
        assert self.go.wait(10)
        self.inner.run(plan, inputs, outputs)

    def checksums(self, data):
        return self.inner.checksums(data)


@pytest.fixture
def gated(group, calls):
    backend = GatedBackend()
    parts = encoder(group, backend=backend)
    made = Checkpointer(rank=0, **parts, on_done=calls.on_done, on_error=calls.on_error, queue_tasks=4)
    yield made, backend
    backend.go.set()
    made.close()


def test_a_fence_stops_the_running_flush_and_the_queued_ones(gated, group, calls):
    checkpointer, backend = gated
    for number in range(3):
        checkpointer.submit(1, task(number, whole(number)))
    assert backend.running.wait(10)
    group.store.advance(2)
    assert not checkpointer.drain(0.05), "a flush is still running"
    backend.go.set()
    assert checkpointer.drain(10)
    assert (calls.done, calls.errors) == ([], [])
    assert not any(group.store.committed(block, 1, block).any() for block in range(3))
    checkpointer.submit(2, task(7, whole(0)))
    assert checkpointer.drain(10)
    assert calls.done == [(2, (7,))]


def test_a_full_queue_makes_the_submitter_wait(gated, calls):
    checkpointer, backend = gated
    checkpointer.submit(1, task(0, whole(0)))
    assert backend.running.wait(10)
    for number in range(1, 5):
        checkpointer.submit(1, task(number, whole(number)))
    late = threading.Thread(target=checkpointer.submit, args=(1, task(5, whole(5))))
    late.start()
    late.join(0.05)
    assert late.is_alive()
    backend.go.set()
    late.join(10)
    assert checkpointer.drain(10)
    assert len(calls.done) == 6


def test_closing_ends_the_thread_and_refuses_more(group, calls):
    before = set(threading.enumerate())
    checkpointer = Checkpointer(rank=0, **encoder(group), on_done=calls.on_done, on_error=calls.on_error)
    (thread,) = set(threading.enumerate()) - before
    assert thread.name == "checkpointer-0"
    checkpointer.close()
    checkpointer.close()
    assert not thread.is_alive()
    with pytest.raises(ValueError, match="closed"):
        checkpointer.submit(1, task(0, whole(0)))


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_callback_that_raises_leaves_nobody_waiting(group):
    def fail(*_):
        raise RuntimeError("the pipe is gone")

    checkpointer = Checkpointer(rank=0, **encoder(group), on_done=fail, on_error=fail)
    checkpointer.submit(1, task(0, whole(0)))
    assert checkpointer.drain(10)
    with pytest.raises(ValueError, match="closed"):
        checkpointer.submit(1, task(1, whole(1)))
    checkpointer.close()


# ---- idle work


class Pieces:
    """Idle work of which every piece is let through one by one; says how far it has come."""

    def __init__(self, count=1000):
        self.count, self.done = count, 0
        self.permits = threading.Semaphore(0)
        self.started = threading.Semaphore(0)

    def __iter__(self):
        for _ in range(self.count):
            self.started.release()
            assert self.permits.acquire(timeout=10)
            self.done += 1
            yield


def test_idle_work_is_done_piece_by_piece_to_its_end(checkpointer, calls):
    pieces = Pieces(3)
    pieces.permits.release(3)
    ended = threading.Event()

    def work():
        yield from pieces
        ended.set()

    checkpointer.when_idle(1, work())
    assert ended.wait(10)
    assert pieces.done == 3
    checkpointer.submit(1, task(0, whole(0)))
    assert checkpointer.drain(10)
    assert calls.done == [(1, (0,))]


def test_a_flush_waits_for_one_piece_at_most(checkpointer, calls):
    pieces = Pieces()
    checkpointer.when_idle(1, iter(pieces))
    assert pieces.started.acquire(timeout=10)  # in the middle of the first piece
    checkpointer.submit(1, task(0, whole(0)))
    checkpointer.submit(1, task(1, whole(1)))
    pieces.permits.release()
    assert pieces.started.acquire(timeout=10)  # in the second one: both flushes came first
    assert [ids for _, ids in calls.done] == [(0,), (1,)]
    assert pieces.done == 1
    pieces.permits.release(1000)


def test_a_fence_ends_idle_work_after_the_piece_under_way(checkpointer, group):
    pieces = Pieces()
    checkpointer.when_idle(1, iter(pieces))
    assert pieces.started.acquire(timeout=10)
    group.store.advance(2)
    assert not checkpointer.drain(0.05), "a piece is still being read"
    pieces.permits.release(1000)
    assert checkpointer.drain(10)
    assert pieces.done == 1


def test_idle_work_of_an_older_epoch_does_not_begin(checkpointer, group):
    group.store.advance(2)
    pieces = Pieces()
    pieces.permits.release(1000)
    checkpointer.when_idle(1, iter(pieces))
    later = Pieces(1)
    later.permits.release(1000)  # the loop may hand in one more before it sees that one is done
    while not later.done:  # each one takes the place of the one before: the thread has been by
        checkpointer.when_idle(2, iter(later))
    assert pieces.done == 0


def test_closing_drops_idle_work(group, calls):
    checkpointer = Checkpointer(rank=0, **encoder(group), on_done=calls.on_done, on_error=calls.on_error)
    pieces = Pieces()
    checkpointer.when_idle(1, iter(pieces))
    assert pieces.started.acquire(timeout=10)
    pieces.permits.release(1000)
    checkpointer.close()
    assert pieces.done < 1000
