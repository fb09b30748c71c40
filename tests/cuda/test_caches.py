"""Who maps whose cache when: a dead rank's memory is free once the survivors have been released."""

import ctypes

import pytest
from fake_runtime import FakeNode, FakeRuntime

from ghostserve.engine.caches import DeviceCaches
from ghostserve.errors import DeviceMemoryError, PeerAccessError

NBYTES = 3 << 20


def group(node, count):
    """The caches of `count` processes of a node, all attached."""
    runtimes = [FakeRuntime(node) for _ in range(count)]
    caches = [DeviceCaches(runtime, NBYTES) for runtime in runtimes]
    handles = [c.own.handle for c in caches]
    return runtimes, caches, handles, [c.attach(rank, handles) for rank, c in enumerate(caches)]


def test_every_rank_sees_every_cache_and_its_own_without_a_mapping():
    runtimes, caches, _, arenas = group(FakeNode(), 3)
    for rank, mine in enumerate(arenas):
        assert mine[rank] is caches[rank].own
        caches[rank].own.tensor[7] = rank
        assert runtimes[rank].leaks()["mapped"] == 2
    for mine in arenas:
        found = [ctypes.string_at(arena.address + 7, 1) for arena in mine]
        assert found == [b"\0", b"\1", b"\2"]


def test_after_the_release_nobody_maps_a_dead_ranks_memory():
    node = FakeNode()
    runtimes, caches, handles, _ = group(node, 3)
    assert any(node.opened.values())
    for rank in (0, 2):  # rank 1 has died
        caches[rank].release()
        caches[rank].release()
        assert runtimes[rank].leaks() == {"malloc": 1, "registered": 0, "mapped": 0}
    # The newcomer of rank 1 has other memory; the survivors keep theirs, and hand out the same handles.
    newcomer = DeviceCaches(FakeRuntime(node), NBYTES)
    again = [caches[0].own.handle, newcomer.own.handle, caches[2].own.handle]
    assert again[0] == handles[0]
    assert again[1] != handles[1]
    assert len(caches[0].attach(0, again)) == 3
    assert runtimes[0].leaks()["mapped"] == 2


def test_a_peer_that_died_in_between_leaves_nothing_behind():
    node = FakeNode()
    runtimes = [FakeRuntime(node) for _ in range(3)]
    caches = [DeviceCaches(runtime, NBYTES) for runtime in runtimes]
    handles = [c.own.handle for c in caches]
    caches[2].own.close()  # as its process's end does
    with pytest.raises(PeerAccessError):
        caches[0].attach(0, handles)
    assert runtimes[0].leaks()["mapped"] == 1
    caches[0].release()
    assert runtimes[0].leaks()["mapped"] == 0


def test_a_full_gpu_is_said_with_numbers():
    with pytest.raises(DeviceMemoryError) as caught:
        DeviceCaches(FakeRuntime(memory_bytes=1 << 20), NBYTES)
    assert caught.value.needed >= NBYTES
