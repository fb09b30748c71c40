"""A rank whose cache lies in its GPU's memory, where vLLM allocated it: peers map it by CUDA IPC."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from ghostserve.codes import Code
from ghostserve.cuda.arena import DeviceArena, PeerArena
from ghostserve.cuda.interface import Runtime
from ghostserve.cuda.path import CudaDataPath
from ghostserve.errors import UnsupportedModelError
from ghostserve.parity.geometry import CacheLayout, ShardMap
from ghostserve.parity.ranges import SlotRange, slot_numbers
from ghostserve.parity.store import ParityStore
from ghostserve.recovery.rebuild import RebuildReport
from ghostserve.vllm.rank_memory import POISON, RankMemory

__all__ = ["DeviceMemory", "borrow"]


class DeviceMemory(RankMemory):
    """vLLM owns the cache; the data path's ring and the pinned parity store come with the first `attach`."""

    data_path = "cuda-ipc"

    def __init__(
        self,
        rank: int,
        runtime: Runtime,
        arena: DeviceArena,
        layout: CacheLayout,
        *,
        make_path: Callable[..., CudaDataPath] = CudaDataPath,
        **callbacks: Any,
    ) -> None:
        """`arena` holds this rank's cache as `layout` says. `callbacks`: `RankMemory`'s.

        Raises `PeerAccessError` if CUDA does not let peers map this memory: better here than in a recovery.
        """
        super().__init__(rank, layout, **callbacks)
        self._runtime, self._arena, self._make_path = runtime, arena, make_path
        self._handle = arena.handle
        self._path: CudaDataPath | None = None
        self._peers: list[PeerArena] = []

    @property
    def handle(self) -> bytes:
        return self._handle

    def _map(self, handles: Sequence[bytes]) -> Sequence[DeviceArena | PeerArena]:
        arenas: list[DeviceArena | PeerArena] = []
        for rank, handle in enumerate(handles):
            if rank == self.rank:
                arenas.append(self._arena)
            else:
                self._peers.append(PeerArena.open(self._runtime, handle, self.layout.total_bytes))
                arenas.append(self._peers[-1])
        return arenas

    def _connect(self, store: ParityStore, code: Code, shard_map: ShardMap, arenas: Sequence[Any]) -> None:
        if self._path is None:
            self._path = self._make_path(
                runtime=self._runtime, store=store, code=code, layout=self.layout, shard_map=shard_map
            )
            self._path.connect(self.rank, arenas)
            # The loss of this rank alone, which is what mostly happens; other patterns are compiled when they do.
            self._path.warm_up((self.rank,), (self.rank,))
        else:
            self._path.connect(self.rank, arenas)

    def _mark(self) -> object | None:
        assert self._path is not None
        return self._path.mark()

    def _encode(
        self, epoch: int, ranges: Sequence[SlotRange], after: object | None, on_stage: Callable[[str], None]
    ) -> None:
        assert self._path is not None
        self._path.encode(epoch, ranges, after, on_stage)

    def _poison(self, ranges: Sequence[SlotRange]) -> None:
        memory = self._arena.tensor
        blocks = np.repeat([r.block for r in ranges], [r.num_slots for r in ranges]).astype(np.int64)
        index = tuple(torch.from_numpy(found).to(memory.device) for found in (blocks, slot_numbers(ranges)))
        shape = self.layout.num_blocks, self.layout.block_size
        for s in self.layout.segments:
            rows = memory.as_strided((*shape, s.nbytes), (s.block_stride, s.slot_stride, 1), s.offset)
            rows[index] = POISON
        # The data path writes on streams of its own.
        self._runtime.current_stream().synchronize()

    def _rebuild(self, lost_ranks: Sequence[int], ranges: Sequence[SlotRange]) -> RebuildReport:
        assert self._path is not None
        return self._path.rebuild(lost_ranks, ranges, (self.rank,))

    def _unmap(self) -> None:
        while self._peers:
            self._peers.pop().close()


def borrow(runtime: Runtime, caches: Mapping[str, object]) -> tuple[DeviceArena, dict[str, int]]:
    """The memory that vLLM has allocated for `caches` (layer name -> KV tensor), and where in it each one begins.

    vLLM puts all layers into one allocation; it stays vLLM's. Raises `UnsupportedModelError`, with the layer's name,
    for a cache that is no single tensor, lies elsewhere than on the runtime's device, or in an allocation of its own.
    """
    offsets: dict[str, int] = {}
    found: torch.UntypedStorage | None = None
    for name, cache in caches.items():
        if not isinstance(cache, torch.Tensor):
            raise UnsupportedModelError(
                f"the cache of {name} is a {type(cache).__name__}, not one tensor: only attention's paged KV cache can "
                f"be protected, not the state of Mamba and other recurrent layers"
            )
        if cache.device != runtime.device or cache.numel() == 0:
            raise UnsupportedModelError(
                f"the cache of {name} has shape {tuple(cache.shape)} and lies on {cache.device}: "
                f"it must not be empty, and on {runtime.device}"
            )
        storage = cache.untyped_storage()
        found = storage if found is None else found
        if storage.data_ptr() != found.data_ptr():
            raise UnsupportedModelError(f"the cache of {name} has an allocation of its own: all layers must share one")
        offsets[name] = cache.data_ptr() - storage.data_ptr()
    if found is None:
        raise UnsupportedModelError("this model has no KV cache: there is nothing to protect")
    return DeviceArena.over(runtime, found.data_ptr(), found.nbytes()), offsets
