import contextlib
from itertools import chain

import numpy as np
import pytest
import torch
from fake_runtime import FakeNode, FakeRuntime

from ghostserve.cuda.arena import DeviceArena, PeerArena
from ghostserve.errors import CudaError
from ghostserve.parity import paging
from ghostserve.parity.geometry import CacheLayout, Segment
from ghostserve.parity.ranges import SlotRange, num_slots

LAYERED = CacheLayout.layered(num_layers=2, num_blocks=5, block_size=4, row_bytes=24)
# K and V of a block side by side, heads apart: strides in every direction, gaps between them.
GAPPED = CacheLayout(3, 4, tuple(Segment(16 + i * 40, 512, 96, 32 - 16 * (i % 2)) for i in range(2)))
RANGES = [SlotRange(2, 0, 0, 1, 4), SlotRange(0, 0, 1, 0, 4), SlotRange(1, 0, 2, 3, 4), SlotRange(1, 0, 2, 0, 0)]


@pytest.fixture(params=["fake", pytest.param("cuda", marks=pytest.mark.gpu)])
def runtime(request):
    if request.param == "fake":
        made = FakeRuntime()
        yield made
        assert made.leaks() == {"malloc": 0, "registered": 0, "mapped": 0}
    else:
        from ghostserve.cuda.runtime import CudaRuntime

        yield CudaRuntime(0)


def noise(*shape):
    return np.random.default_rng(3).integers(0, 256, shape, dtype=np.uint8)


@contextlib.contextmanager
def filled(runtime, layout):
    """An arena and the same bytes on the host."""
    with DeviceArena.allocate(runtime, layout.total_bytes) as arena:
        host = noise(layout.total_bytes)
        arena.tensor.copy_(torch.from_numpy(host))
        yield arena, host


def test_a_new_arena_is_poison(runtime):
    with DeviceArena.allocate(runtime, 5000) as arena:
        assert arena.nbytes == 5000
        assert arena.tensor.shape == (5000,)
        assert arena.tensor.data_ptr() == arena.address
        assert (arena.tensor == 0xFF).all()
        assert arena.tensor.device == runtime.device


@pytest.mark.parametrize("layout", [LAYERED, GAPPED], ids=["layered", "gapped"])
def test_gather_and_scatter_are_those_of_the_host(runtime, layout):
    with filled(runtime, layout) as (arena, host):
        np.testing.assert_array_equal(arena.gather(layout, RANGES), paging.gather(host, layout, RANGES))
        shards = noise(num_slots(RANGES), layout.slot_bytes)[::-1]
        arena.scatter(layout, RANGES, shards)
        paging.scatter(host, layout, RANGES, np.ascontiguousarray(shards))
        np.testing.assert_array_equal(arena.tensor.cpu().numpy(), host)
        out = np.full((num_slots(RANGES), layout.slot_bytes), 0xEE, dtype=np.uint8)
        assert arena.gather(layout, RANGES, out) is out
        np.testing.assert_array_equal(out, shards)
        assert arena.gather(layout, []).shape == (0, layout.slot_bytes)


def test_the_staging_buffer_is_used_again(runtime):
    with filled(runtime, LAYERED) as (arena, host):
        arena.staging_bytes = 3 * LAYERED.slot_bytes
        expected = paging.gather(host, LAYERED, RANGES)
        np.testing.assert_array_equal(arena.gather(LAYERED, RANGES), expected)
        arena.scatter(LAYERED, RANGES, expected[::-1])
        np.testing.assert_array_equal(arena.gather(LAYERED, RANGES), expected[::-1])


def test_what_lies_outside_is_refused(runtime):
    with filled(runtime, LAYERED) as (arena, _):
        with pytest.raises(ValueError, match="outside a cache of 5 blocks"):
            arena.gather(LAYERED, [SlotRange(5, 0, 0, 0, 1)])
        with pytest.raises(ValueError, match=r"shards are uint8 \(2, 96\)"):
            arena.scatter(LAYERED, RANGES, noise(2, 96))
        larger = CacheLayout.layered(num_layers=3, num_blocks=5, block_size=4, row_bytes=24)
        for call in (lambda: arena.gather(larger, RANGES), lambda: arena.shard(larger)):
            with pytest.raises(ValueError, match=f"the layout needs {larger.total_bytes}"):
                call()


def test_the_shard_begins_where_the_arena_does(runtime):
    with filled(runtime, GAPPED) as (arena, _):
        assert arena.shard(GAPPED).addresses == (arena.address + 16, arena.address + 56)


def test_a_closed_arena_has_no_address(runtime):
    arena = DeviceArena.allocate(runtime, 100)
    arena.close()
    arena.close()
    with pytest.raises(ValueError, match="closed"):
        _ = arena.address


def test_a_peer_reads_and_writes_the_owners_bytes():
    node = FakeNode()
    owner, other = FakeRuntime(node), FakeRuntime(node)
    with filled(owner, LAYERED) as (arena, host):
        with PeerArena.open(other, arena.handle, arena.nbytes) as peer:
            np.testing.assert_array_equal(peer.gather(LAYERED, RANGES), paging.gather(host, LAYERED, RANGES))
            peer.scatter(LAYERED, RANGES, noise(num_slots(RANGES), LAYERED.slot_bytes))
            with pytest.raises(CudaError, match="have it open"):
                owner.free(arena.address)
        assert not np.array_equal(arena.gather(LAYERED, RANGES), paging.gather(host, LAYERED, RANGES))
    assert [*chain(owner.leaks().values(), other.leaks().values())] == [0] * 6


def test_a_handle_of_less_memory_is_refused():
    node = FakeNode()
    owner, other = FakeRuntime(node), FakeRuntime(node)
    with DeviceArena.allocate(owner, 100) as arena, pytest.raises(CudaError, match="were expected"):
        PeerArena.open(other, arena.handle, 3 << 20)
    assert other.leaks()["mapped"] == 0
