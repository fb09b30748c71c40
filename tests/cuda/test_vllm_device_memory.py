"""A rank of vLLM on a GPU, without one: flushes wait for the model, a rebuild gives every bit back."""

from functools import partial
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from fake_runtime import FakeNode, FakeRuntime
from host_kernels import HostKernels
from lazy_runtime import LazyKernels, LazyRuntime

from ghostserve.checkpoint.tasks import FlushTask
from ghostserve.codes import make_backend, make_code
from ghostserve.cuda.arena import DeviceArena, tensor_view
from ghostserve.cuda.path import CudaDataPath
from ghostserve.errors import PeerAccessError, UnsupportedModelError
from ghostserve.parity import ParityStore, SlotRange, StoreGeometry, gather, scatter
from ghostserve.vllm.arena import handle_of
from ghostserve.vllm.device_memory import DeviceMemory, borrow
from ghostserve.vllm.layout import strided_layout
from ghostserve.vllm.messages import StoreHandle

BLOCKS, HEADS, SLOTS, HEAD = 6, 2, 4, 8
LAYERS = 3
RANGES = (SlotRange(0, 1, 3, 0, 4), SlotRange(2, 4, 0, 1, 3), SlotRange(5, 5, 1, 0, 1))
PREFIX = 512  # what torch's allocator has in the same allocation before the cache


class Rank:
    """One process: its runtime, and the cache as vLLM allocates it: one buffer, a view for each layer."""

    def __init__(self, number: int, runtime: Any, lazy: bool = False) -> None:
        self.runtime = runtime
        nbytes = LAYERS * BLOCKS * HEADS * SLOTS * 2 * HEAD * 2
        self.base = runtime.malloc(PREFIX + nbytes)
        buffer = tensor_view(runtime, self.base + PREFIX, nbytes)
        self.truth = np.random.default_rng(number).integers(0, 255, nbytes, dtype=np.uint8)
        buffer.copy_(torch.from_numpy(self.truth))
        # Layers side by side inside a block, tokens outermost in a layer's part of it.
        shape = (BLOCKS, LAYERS, SLOTS, HEADS, 2 * HEAD)
        self.caches = {
            f"layers.{layer}": buffer.view(torch.bfloat16).view(shape)[:, layer].permute(0, 2, 1, 3)
            for layer in range(LAYERS)
        }
        self.buffer = buffer
        arena, offsets = borrow(runtime, self.caches)
        self.layout = strided_layout(self.caches, offsets)
        kernels = LazyKernels(self.layout, runtime) if lazy else HostKernels(self.layout)
        self.done: list[tuple[int, tuple[int, ...]]] = []
        self.errors: list[Exception] = []
        self.memory = DeviceMemory(
            number,
            runtime,
            arena,
            self.layout,
            make_path=partial(CudaDataPath, backend=make_backend("cpu"), kernels=kernels, mode="ring"),
            on_done=lambda epoch, tasks: self.done.append((epoch, tasks)),
            on_error=lambda epoch, task, error: self.errors.append(error),
            on_stage=lambda stage: None,
        )

    def wait(self) -> None:
        """Until its flushes are through."""
        checkpointer = self.memory._checkpointer
        assert checkpointer is not None
        with checkpointer._changed:
            assert checkpointer._changed.wait_for(lambda: not checkpointer._queue and not checkpointer._busy, 20)
        assert self.errors == []

    def bytes(self) -> Any:
        return gather(self.buffer.numpy(), self.layout, RANGES)


@pytest.fixture
def store() -> Any:
    made: list[ParityStore] = []

    def make(layout: Any, code: str = "rs:1", ranks: int = 2) -> tuple[ParityStore, StoreHandle]:
        found = make_code(code, ranks)
        opened = ParityStore.create(StoreGeometry(found.n, found.k, BLOCKS, SLOTS, layout.slot_bytes))
        opened.advance(1)
        made.append(opened)
        return opened, StoreHandle(handle_of(opened.region), code, ranks, BLOCKS, SLOTS, layout.slot_bytes)

    yield make
    for opened in made:
        opened.close()


def attach(ranks: list[Rank], handle: StoreHandle) -> None:
    handles = [rank.memory.handle for rank in ranks]
    for rank in ranks:
        rank.memory.attach(handles, handle)


def test_the_layout_is_that_of_the_buffer() -> None:
    rank = Rank(0, FakeRuntime())
    assert (rank.layout.num_blocks, rank.layout.block_size) == (BLOCKS, SLOTS)
    assert rank.layout.slot_bytes == LAYERS * HEADS * 2 * HEAD * 2
    assert rank.layout.total_bytes == rank.buffer.numel()


def test_a_lost_cache_comes_back_bit_by_bit(store: Any) -> None:
    node = FakeNode()
    ranks = [Rank(number, FakeRuntime(node)) for number in range(2)]
    _, handle = store(ranks[0].layout)
    attach(ranks, handle)
    ranks[0].memory.submit(1, [FlushTask(7, 1, 0, RANGES), FlushTask(8, 1, 1, RANGES)])
    ranks[0].wait()
    assert ranks[0].done == [(1, (7,))], "the other task is another rank's"
    for rank in ranks:
        rank.memory.release()
    assert all(rank.runtime.leaks()["mapped"] == 0 for rank in ranks)
    newcomer = Rank(9, FakeRuntime(node))
    newcomer.memory.rank = 1
    attach([ranks[0], newcomer], handle)
    expected = newcomer.truth.copy()
    report = newcomer.memory.rebuild((1,), RANGES, skip=False)
    assert report is not None
    assert not report.failed
    assert np.array_equal(newcomer.bytes(), gather(ranks[1].truth, ranks[1].layout, RANGES))
    # Nothing beside the asked slots was written.
    found = newcomer.buffer.numpy().copy()
    for memory in (found, expected):
        _blank(memory, newcomer.layout)
    assert np.array_equal(found, expected)


def _blank(memory: Any, layout: Any) -> None:
    zeros = np.zeros((sum(r.num_slots for r in RANGES), layout.slot_bytes), np.uint8)
    scatter(memory, layout, RANGES, zeros)


def test_what_is_not_rebuilt_is_poison() -> None:
    rank = Rank(0, FakeRuntime())
    assert rank.memory.rebuild((0,), RANGES, skip=True) is None
    assert (rank.bytes() == 0xFF).all()
    assert rank.memory.rebuild((0,), (), skip=True) is None


@pytest.mark.parametrize("marked", [True, False])
def test_a_flush_waits_for_the_step(store: Any, marked: bool) -> None:
    """At `submit` the model's stream has not come to the slots yet; one that does not wait finds old bytes."""
    runtime = LazyRuntime()
    rank = Rank(0, runtime, lazy=True)
    if not marked:
        rank.memory._mark = lambda: None  # type: ignore[method-assign]
    peer = Rank(1, runtime, lazy=True)
    _, handle = store(rank.layout)
    attach([rank, peer], handle)
    fresh = np.random.default_rng(5).integers(0, 255, rank.truth.size, dtype=np.uint8)
    with runtime.model():
        runtime.lazy(lambda: rank.buffer.copy_(torch.from_numpy(fresh)))
        rank.memory.submit(1, [FlushTask(7, 1, 0, RANGES)])
        rank.wait()
    rank.buffer.copy_(torch.from_numpy(fresh))
    peer.memory.rebuild((1,), RANGES, skip=False)
    assert np.array_equal(peer.bytes(), gather(peer.truth, peer.layout, RANGES)) is marked


def test_release_closes_peers_and_frees_nothing(store: Any) -> None:
    node = FakeNode()
    ranks = [Rank(number, FakeRuntime(node)) for number in range(2)]
    _, handle = store(ranks[0].layout)
    attach(ranks, handle)
    assert ranks[0].runtime.leaks()["mapped"] == 1
    before = ranks[0].runtime.leaks()["malloc"]
    ranks[0].memory.release()
    ranks[0].memory.release()
    assert ranks[0].runtime.leaks()["mapped"] == 0
    assert ranks[0].runtime.leaks()["malloc"] == before, "the cache is vLLM's, the ring serves the next epoch"
    assert np.array_equal(ranks[0].buffer.numpy(), ranks[0].truth)


def test_a_peer_that_has_died_since_is_an_error_that_leaves_nothing_mapped(store: Any) -> None:
    node = FakeNode()
    ranks = [Rank(number, FakeRuntime(node)) for number in range(2)]
    _, handle = store(ranks[0].layout)
    node.exports.clear()
    with pytest.raises(PeerAccessError):
        attach(ranks, handle)
    ranks[0].memory.release()
    assert ranks[0].runtime.leaks()["mapped"] == 0


def test_where_ipc_is_refused_the_start_fails() -> None:
    with pytest.raises(PeerAccessError):
        Rank(0, FakeRuntime(FakeNode(ipc_refused=True)))


def test_without_parity_peers_are_mapped_and_nothing_is_flushed() -> None:
    node = FakeNode()
    ranks = [Rank(number, FakeRuntime(node)) for number in range(2)]
    attach(ranks, StoreHandle(b"", "none", 2, BLOCKS, SLOTS, ranks[0].layout.slot_bytes))
    ranks[0].memory.submit(1, [FlushTask(7, 1, 0, RANGES)])
    assert ranks[0].done == []
    ranks[0].memory.release()


class TestBorrowing:
    def test_the_arena_is_not_freed(self) -> None:
        runtime = FakeRuntime()
        address = runtime.malloc(4096)
        with DeviceArena.over(runtime, address, 4096) as arena:
            assert arena.handle
        assert runtime.leaks()["malloc"] == 1
        runtime.free(address)

    def test_no_cache(self) -> None:
        with pytest.raises(UnsupportedModelError, match="no KV cache"):
            borrow(FakeRuntime(), {})

    def test_a_recurrent_state(self) -> None:
        with pytest.raises(UnsupportedModelError, match=r"layers\.1 is a tuple, not one tensor"):
            borrow(FakeRuntime(), {"layers.0": torch.zeros(4), "layers.1": (torch.zeros(4), torch.zeros(4))})

    def test_an_allocation_of_its_own(self) -> None:
        with pytest.raises(UnsupportedModelError, match=r"layers\.1 has an allocation of its own"):
            borrow(FakeRuntime(), {"layers.0": torch.zeros(4), "layers.1": torch.zeros(4)})

    def test_another_device(self) -> None:
        runtime = SimpleNamespace(device=torch.device("cuda", 1))
        with pytest.raises(UnsupportedModelError, match=r"lies on cpu: .* on cuda:1"):
            borrow(runtime, {"layers.0": torch.zeros(4)})  # type: ignore[arg-type]


def test_handles_travel_as_messages() -> None:
    rank = Rank(0, FakeRuntime())
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(rank.memory.handle), type=bytes) == rank.memory.handle
