"""What is this store's own; what every store promises is tried in tests/testing."""

import ctypes
import os
import signal
import stat
import time

import numpy as np
import pytest

from ghostserve.errors import StaleEpochError, StoreMismatchError
from ghostserve.parity import ParityStore, SharedRegion, SlotRange, StoreGeometry

GEOMETRY = StoreGeometry(num_data=3, num_parity=2, num_parity_blocks=4, block_size=4, slot_bytes=16)
OLD = SlotRange(block=9, generation=5, parity_block=2, start=1, stop=4)


@pytest.fixture
def store():
    made = ParityStore.create(GEOMETRY, epoch=3)
    yield made
    made.close()


def content(seed, slots):
    rng = np.random.default_rng(seed)
    parity = rng.integers(0, 256, (slots, GEOMETRY.num_parity, GEOMETRY.slot_bytes), dtype=np.uint8)
    return parity, rng.integers(0, 2**64, (slots, 5), dtype=np.uint64)


def test_a_record_that_was_moved_is_not_committed(store):
    store.write(3, OLD, *content(0, 3))
    store._records[0:4] = store._records[8:12]
    assert not store.committed(9, 5, 0).any()


def torn_states(new, parity, sums):
    """Every memory that a writer killed at any store, or inside any store, can leave behind."""
    before = content(0, 3)
    steps = len(list(ParityStore.create(GEOMETRY)._stores([new], parity, sums)))
    for step in range(steps):
        for share in (0.0, 0.3, 0.5, 0.9, 1.0):
            store = ParityStore.create(GEOMETRY)
            store.write(1, OLD, *before)
            for index, part in enumerate(store._stores([new], parity, sums)):
                if index < step:
                    part.run()
                elif index == step:
                    target = part.target[part.rows]
                    merged = part.target[part.rows].copy()
                    wanted = np.broadcast_to(part.source, merged.shape)
                    cut = int(merged.nbytes * share)
                    raw = np.frombuffer(bytearray(merged.tobytes()), np.uint8)
                    raw[:cut] = np.frombuffer(np.ascontiguousarray(wanted).tobytes(), np.uint8)[:cut]
                    target[...] = raw.view(merged.dtype).reshape(merged.shape)
            yield step, store


@pytest.mark.parametrize("generation", [5, 6])
def test_a_write_that_is_cut_anywhere_leaves_old_new_or_nothing(generation):
    new = SlotRange(9, generation, 2, 0, 3)
    parity, sums = content(1, 3)
    old_parity, old_sums = content(0, 3)
    states = 0
    for _, torn in torn_states(new, parity, sums):
        store = ParityStore.attach(torn.region.fd, GEOMETRY)
        for slot in range(4):
            one = SlotRange(9, generation, 2, slot, slot + 1)
            is_new = slot < 3 and np.array_equal(store.payload(one)[0], parity[slot])
            is_new = is_new and np.array_equal(store.records(one)[0], sums[slot])
            is_old = slot >= 1 and np.array_equal(store.payload(one)[0], old_parity[slot - 1])
            is_old = is_old and np.array_equal(store.records(one)[0], old_sums[slot - 1])
            if store.committed(9, generation, 2)[slot]:
                assert is_new or (is_old and generation == 5)
            if generation == 6 and store.committed(9, 5, 2)[slot]:
                assert is_old
        states += 1
        store.close()
        torn.close()
    assert states == 20


def test_every_flipped_bit_of_a_record_is_noticed(store):
    store.write(3, OLD, *content(0, 3))
    record = store._records[2 * 4 + 2]
    for word in range(GEOMETRY.record_words):
        for bit in range(64):
            record[word] ^= np.uint64(1 << bit)
            assert store.committed(9, 5, 2).tolist() == [False, True, False, True]
            record[word] ^= np.uint64(1 << bit)
    assert store.committed(9, 5, 2).tolist() == [False, True, True, True]


@pytest.mark.parametrize("epoch", [2, 4])
def test_writers_of_another_epoch_change_nothing(store, epoch):
    store.write(3, OLD, *content(0, 3))
    before = store.region.array.copy()
    with pytest.raises(StaleEpochError) as error:
        store.write(epoch, OLD, *content(1, 3))
    assert (error.value.found, error.value.expected) == (3, epoch)
    assert np.array_equal(store.region.array, before)


def test_a_device_writes_the_payload_between_begin_and_commit(store):
    """The payload by its address, as a device gets it; until the commit none of these slots counts, old or new."""
    ranges = [SlotRange(9, 6, 2, 1, 3), SlotRange(0, 1, 0, 3, 4)]
    store.write(3, OLD, *content(0, 3))
    parity, sums = content(1, 3)
    store.begin(3, ranges)
    assert store.committed(9, 5, 2).tolist() == [False, False, False, True]
    rows = store.store_rows(ranges)
    assert rows.tolist() == [9, 10, 3]
    for row, slot in zip(rows, parity, strict=True):
        ctypes.memmove(store.payload_address + int(row) * slot.nbytes, slot.tobytes(), slot.nbytes)
    assert not store.committed_slots(ranges).any()
    store.commit(3, ranges, sums)
    assert store.committed_slots(ranges).all()
    assert np.array_equal(store.payload(ranges), parity)
    assert np.array_equal(store.records(ranges), sums)
    twin = ParityStore.create(GEOMETRY, epoch=3)
    twin.write(3, OLD, *content(0, 3))
    twin.write(3, ranges, parity, sums)
    assert np.array_equal(twin.region.array, store.region.array)


def test_attach_names_the_number_that_differs():
    made = ParityStore.create(StoreGeometry(2, 1, 4, 8, 16))
    twin = StoreGeometry(2, 1, 8, 4, 16)  # as many bytes
    assert twin.total_bytes == made.geometry.total_bytes
    with pytest.raises(StoreMismatchError, match="num_parity_blocks 4, 8 was expected"):
        ParityStore.attach(made.region.fd, twin)
    made.close()


@pytest.mark.parametrize(("word", "what"), [(0, "magic"), (1, "version")])
def test_attach_refuses_another_magic_or_version(store, word, what):
    store.region.array.view(np.uint64)[word] += np.uint64(1)
    with pytest.raises(StoreMismatchError, match=what):
        ParityStore.attach(store.region.fd, GEOMETRY)


def test_attach_refuses_memory_of_another_size():
    with (
        SharedRegion.create("test", 4096) as region,
        pytest.raises(StoreMismatchError, match="4096 bytes long"),
    ):
        ParityStore.attach(region.fd, GEOMETRY)


def test_only_this_user_may_open_it(store):
    assert stat.S_IMODE(os.fstat(store.region.fd).st_mode) == 0o600


@pytest.mark.parametrize(
    "slots",
    [
        SlotRange(0, 0, 4, 0, 1),
        SlotRange(0, 0, -1, 0, 1),
        SlotRange(0, 0, 0, 0, 5),
        SlotRange(0, 1 << 32, 0, 0, 1),
    ],
)
def test_slots_that_the_store_does_not_have_are_refused(store, slots):
    with pytest.raises(ValueError, match=r"outside a store|must be in"):
        store.write(3, slots, *content(0, slots.num_slots))


@pytest.mark.parametrize("delay", [0.0, 0.003, 0.011, 0.02])
def test_a_writer_that_is_killed_leaves_only_whole_slots_committed(store, delay):
    """A real process, a real SIGKILL: every committed slot has the payload that its record tells of."""
    place = SlotRange(9, 5, 2, 0, 4)
    child = os.fork()
    if child == 0:
        for seed in range(1_000_000):
            parity = np.full((4, 2, 16), seed % 251, np.uint8)
            store.write(3, place, parity, np.full((4, 5), seed % 251, np.uint64))
        os._exit(0)
    time.sleep(delay)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    committed = store.committed(9, 5, 2)
    for slot in np.flatnonzero(committed):
        one = place.part(int(slot), int(slot) + 1)
        assert (store.payload(one) == store.records(one)[0, 0]).all()
