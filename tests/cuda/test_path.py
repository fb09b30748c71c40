"""The data path as a worker holds it: made, connected, used beside a checkpointer, connected again, closed."""

import numpy as np
import pytest
import torch
from fake_runtime import FakeNode, FakeRuntime
from host_kernels import HostKernels
from path_world import ALL, LAYOUT, RANGES, quiet

from ghostserve.checkpoint import Checkpointer, FlushTask
from ghostserve.codes import make_code
from ghostserve.cuda.arena import DeviceArena, PeerArena
from ghostserve.cuda.path import CudaDataPath
from ghostserve.cuda.payload import StorePayload, pin_payload
from ghostserve.cuda.ring import MAX_RING_BYTES, Ring
from ghostserve.errors import ConfigError, DeviceMemoryError, StoreMismatchError, UnsupportedCodeError
from ghostserve.parity import CacheLayout, ParityStore, ShardMap, StoreGeometry, gather
from ghostserve.parity.ranges import singles

pytest_plugins = ["path_fixtures"]


@pytest.mark.parametrize("kind", ALL)
def test_a_checkpointer_flushes_what_a_step_has_written(make_world, kind):
    world = make_world(kind)
    done, errors = [], []
    checkpointer = Checkpointer(
        rank=0,
        encode=world.path.encode,
        current_epoch=lambda: world.store.epoch,
        on_done=lambda epoch, tasks: done.append((epoch, tasks)),
        on_error=lambda *error: errors.append(error),
    )
    for number, slots in enumerate(RANGES):
        checkpointer.submit(1, FlushTask(number, number, 0, (slots,)), world.path.mark())
    assert checkpointer.drain(30)
    checkpointer.close()
    assert errors == []
    assert done == [(1, (number,)) for number in range(len(RANGES))]
    assert world.store.committed_slots(RANGES).all()
    assert world.rebuild(2, 3).failed == ()
    assert world.only_asked(2)


@pytest.mark.parametrize("kind", ALL)
def test_a_newcomer_brings_an_arena_of_its_own(make_world, kind):
    world = make_world(kind)
    world.flush()
    world.arenas[1].close()
    world.arenas[1] = DeviceArena.allocate(world.runtime, LAYOUT.total_bytes)
    world.path.connect(1, world.arenas)
    assert world.rebuild(1, wipe=False).failed == ()
    assert world.only_asked(1)
    # And flushes read it from now on: the same parity comes out of it.
    before = world.store.region.array.copy()
    world.flush()
    assert np.array_equal(world.store.region.array, before)


@pytest.mark.parametrize("kind", ALL)
def test_slots_one_by_one_are_as_good_as_all_at_once(make_world, kind):
    world, other = make_world(kind, mode="ring"), make_world(kind, mode="zero-copy")
    world.flush()
    for slot in singles(RANGES):
        other.flush([slot])
    assert np.array_equal(world.store.region.array, other.store.region.array)


def test_a_peers_cache_is_read_through_its_handle():
    """Two processes: what the newcomer opens by the survivor's handle it reads in place."""
    node = FakeNode()
    survivor, newcomer = FakeRuntime(node), FakeRuntime(node)
    content = np.random.default_rng(1).integers(0, 255, (2, LAYOUT.total_bytes), dtype=np.uint8)
    store = ParityStore.create(StoreGeometry(2, 1, 6, 4, LAYOUT.slot_bytes))
    own = [DeviceArena.allocate(r, LAYOUT.total_bytes) for r in (survivor, newcomer)]
    for arena, bytes_ in zip(own, content, strict=True):
        arena.tensor.copy_(torch.from_numpy(bytes_))
    for runtime, mine, peer in ((survivor, 0, 1), (newcomer, 1, 0)):
        kernels = HostKernels(LAYOUT)
        with PeerArena.open(runtime, own[peer].handle, LAYOUT.total_bytes) as opened:
            arenas = [None, None]
            arenas[mine], arenas[peer] = own[mine], opened
            path = CudaDataPath(
                runtime=runtime,
                store=store,
                code=make_code("xor", 2),
                layout=LAYOUT,
                shard_map=ShardMap(2, 2),
                kernels=kernels,
            )
            path.connect(mine, arenas)
            if mine == 0:
                path.encode(1, RANGES, path.mark(), quiet)
                own[1].tensor.fill_(0xFF)
            else:
                assert path.rebuild((1,), RANGES, (1,)).failed == ()
            path.close()
    assert np.array_equal(gather(own[1].tensor.numpy(), LAYOUT, RANGES), gather(content[1], LAYOUT, RANGES))
    for arena in own:
        arena.close()
    assert survivor.leaks() == newcomer.leaks() == {"malloc": 0, "registered": 0, "mapped": 0}
    store.close()


def test_the_ring_is_all_the_device_memory_it_holds(make_world):
    world = make_world("eager")
    for _ in range(3):
        world.flush()
        world.rebuild(1)
    assert world.runtime.leaks()["malloc"] == len(world.arenas) + 1
    assert world.path._flusher._in_ring._ring.nbytes == MAX_RING_BYTES == 64 << 20


def test_kernels_are_compiled_before_they_are_needed(make_world):
    kernels = HostKernels(LAYOUT)
    world = make_world("eager", kernels=kernels)
    assert kernels.warmed == 1
    world.path.warm_up((1,), (1,))
    assert kernels.warmed == 2
    world.path.warm_up((0, 1, 2), (1,))
    assert kernels.warmed == 2, "that can't be rebuilt"


def test_what_is_not_connected_or_closed_says_so(make_world):
    world = make_world("eager")
    with pytest.raises(StoreMismatchError, match="3 arenas were given for 4 ranks"):
        world.path.connect(0, world.arenas[:3])
    world.path.close()
    world.path.close()
    with pytest.raises(ValueError, match="not connected"):
        world.flush()
    with pytest.raises(ValueError, match="not connected"):
        world.rebuild(1)


@pytest.mark.parametrize(
    ("layout", "memory", "error"),
    [
        (LAYOUT, 1 << 20, DeviceMemoryError),
        (CacheLayout.layered(2, 6, 4, 24), 1 << 30, UnsupportedCodeError),
    ],
)
def test_a_path_that_can_not_be_made_gives_everything_back(layout, memory, error):
    if torch.cuda.is_available():
        pytest.skip("Triton's interpreter is off where there is a GPU")
    runtime = FakeRuntime(memory_bytes=memory)
    store = ParityStore.create(StoreGeometry(4, 2, 6, 4, layout.slot_bytes))
    with pytest.raises(error):
        CudaDataPath(runtime=runtime, store=store, code=make_code("rs:2", 4), layout=layout, shard_map=ShardMap(4, 4))
    assert runtime.leaks() == {"malloc": 0, "registered": 0, "mapped": 0}
    store.close()


def test_a_ring_of_another_size_is_refused():
    runtime = FakeRuntime()
    for nbytes in (0, MAX_RING_BYTES + 1):
        with pytest.raises(ConfigError, match=f"a ring of {nbytes} bytes"):
            Ring(runtime, nbytes)
    assert runtime.leaks()["malloc"] == 0
    with Ring(runtime, 1 << 20) as ring, pytest.raises(ConfigError, match="1 frames"):
        ring.cut(16, 3, 1)
    assert runtime.leaks() == {"malloc": 0, "registered": 0, "mapped": 0}


@pytest.mark.parametrize("pieces", [False, True])
def test_rows_go_to_the_store_and_come_back_also_across_pinned_pieces(pieces):
    runtime = FakeRuntime(register_limit=4096 if pieces else None)
    store = ParityStore.create(StoreGeometry(4, 3, 8, 4, 1040))
    content = np.random.default_rng(2).integers(0, 256, store._payload.shape, dtype=np.uint8)
    payload = StorePayload(runtime, store, piece_bytes=4096)
    assert payload.row_bytes == 3120
    assert len(payload._memory.pieces) == (25 if pieces else 1)
    stream, device = runtime.stream(), runtime.malloc(32 * 3120)
    there = DeviceArena(runtime, device, 32 * 3120)
    there.tensor.copy_(torch.from_numpy(content.reshape(-1)))
    payload.write([(0, 0, 20), (20, 20, 12)], device, stream)
    assert np.array_equal(store._payload, content)
    for first, shards in ((0, 3), (0, 1), (1, 2), (2, 1)):
        there.tensor.fill_(0xFF)
        payload.read([(0, 5, 7), (7, 12, 13)], first, shards, device, stream)
        got = there.tensor.numpy()[: 20 * shards * 1040].reshape(20, shards, 1040)
        assert np.array_equal(got, content[5:25, first : first + shards])
        assert (there.tensor.numpy()[got.size :] == 0xFF).all()
    payload.close()
    there.close()
    assert runtime.leaks() == {"malloc": 0, "registered": 0, "mapped": 0}
    store.close()


def test_a_payload_that_is_pinned_already_is_copied_by_its_own_runtime():
    """A standby prepares on every GPU of its host: the store is pinned once, each path copies on its own device."""
    first, second = FakeRuntime(), FakeRuntime()
    second._registered = first._registered  # pinned by one, host memory is so for all devices of a process
    store = ParityStore.create(StoreGeometry(4, 1, 2, 4, 64))
    pinned = pin_payload(first, store)
    payload = StorePayload(second, store, pinned=pinned)
    stream, device = second.stream(), second.malloc(8 * 64)
    content = np.random.default_rng(3).integers(0, 256, 8 * 64, dtype=np.uint8)
    there = DeviceArena(second, device, 8 * 64)
    there.tensor.copy_(torch.from_numpy(content))
    payload.write([(0, 0, 8)], device, stream)  # a runtime refuses another one's stream
    assert np.array_equal(store._payload.reshape(-1), content)
    payload.read([(0, 4, 4)], 0, 1, device, stream)
    assert np.array_equal(there.tensor.numpy()[: 4 * 64], content[4 * 64 :])
    payload.close()
    assert first.leaks()["registered"] == 1, "it is its owner's"
    pinned.close()
    there.close()
    assert first.leaks() == second.leaks() == {"malloc": 0, "registered": 0, "mapped": 0}
    store.close()
