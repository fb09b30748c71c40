"""One rank's part in keeping KV safe: its cache where peers read it, its flushes, the rebuild of what it lost."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ghostserve.checkpoint.checkpointer import Checkpointer
from ghostserve.checkpoint.encoding import encode_ranges
from ghostserve.checkpoint.tasks import FlushTask
from ghostserve.codes import make_backend, make_code
from ghostserve.errors import GhostServeError
from ghostserve.parity import paging
from ghostserve.parity.arena import HostArena
from ghostserve.parity.geometry import CacheLayout, ShardMap, StoreGeometry
from ghostserve.parity.memory import SharedRegion
from ghostserve.parity.ranges import SlotRange, num_slots, tiles
from ghostserve.parity.store import ParityStore
from ghostserve.recovery.rebuild import RebuildReport, rebuild
from ghostserve.vllm.arena import handle_of, open_peer
from ghostserve.vllm.messages import StoreHandle

__all__ = ["HostMemory"]

_POISON = 0xFF  # NaN in every floating-point type: a slot that was not rebuilt can't pass for one
_DRAIN_SECONDS = 30.0


class HostMemory:
    """A rank whose cache lies in host memory. Goes through `attach` and `release` with every epoch."""

    def __init__(
        self,
        rank: int,
        region: SharedRegion,
        layout: CacheLayout,
        *,
        on_done: Callable[[int, tuple[int, ...]], object],
        on_error: Callable[[int, FlushTask, Exception], object],
        on_stage: Callable[[str], None],
    ) -> None:
        """`region` holds this rank's cache as `layout` says. The callbacks are `Checkpointer`'s."""
        self.rank, self.layout, self._region = rank, layout, region
        self._on_done, self._on_error, self._on_stage = on_done, on_error, on_stage
        self._backend = make_backend()
        self._backend.warm_up()
        paging.warm_up()
        self._peers: list[SharedRegion] = []
        self._store: ParityStore | None = None
        self._checkpointer: Checkpointer | None = None
        self._parts: dict[str, Any] = {}

    @property
    def handle(self) -> bytes:
        """By which peers map this rank's cache."""
        return handle_of(self._region)

    def attach(self, handles: Sequence[bytes], store: StoreHandle) -> None:
        """Map the caches of all ranks and the parity store. Raises `PeerAccessError` for a peer that has died since."""
        arenas = []
        for rank, handle in enumerate(handles):
            if rank == self.rank:
                arenas.append(HostArena(self._region.array))
            else:
                self._peers.append(open_peer(handle))
                arenas.append(HostArena(self._peers[-1].array))
        code = make_code(store.parity, store.num_shards)
        if code is None:
            return
        if self._store is None:
            self._open_store(store, code.n, code.k)
        self._parts = {
            "store": self._store,
            "code": code,
            "backend": self._backend,
            "arenas": arenas,
            "layout": self.layout,
            "shard_map": ShardMap(len(handles), store.num_shards),
        }

    def submit(self, epoch: int, tasks: Sequence[FlushTask]) -> None:
        """A step has run here, so all ranks have written its slots: flush those that are this rank's to encode."""
        if self._checkpointer is not None:
            for task in tasks:
                if task.encoder == self.rank:
                    self._checkpointer.submit(epoch, task)

    def rebuild(self, lost_ranks: Sequence[int], ranges: Sequence[SlotRange], *, skip: bool) -> RebuildReport | None:
        """Fill the own cache's `ranges` again. `skip`: leave them poisoned, for the proof that it would be noticed."""
        for tile in tiles(ranges, 1024):
            poison = np.full((num_slots(tile), self.layout.slot_bytes), _POISON, np.uint8)
            paging.scatter(self._region.array, self.layout, tile, poison)
        if skip or not self._parts:
            return None
        return rebuild(**self._parts, lost_ranks=lost_ranks, targets=(self.rank,), ranges=ranges)

    def release(self) -> None:
        """Let the shadow come to rest, then let go of the peers: nothing here uses shared memory afterwards."""
        if self._checkpointer is not None and not self._checkpointer.drain(_DRAIN_SECONDS):
            raise GhostServeError(f"the flush of rank {self.rank} did not end within {_DRAIN_SECONDS} s")
        self._parts = {}
        while self._peers:
            self._peers.pop().close()

    def _open_store(self, store: StoreHandle, num_data: int, num_parity: int) -> None:
        geometry = StoreGeometry(num_data, num_parity, store.num_parity_blocks, store.block_size, store.slot_bytes)
        with open_peer(store.memory) as memory:
            opened = ParityStore.attach(memory.fd, geometry)
        self._store = opened
        self._checkpointer = Checkpointer(
            rank=self.rank,
            encode=self._encode,
            current_epoch=lambda: opened.epoch,
            on_done=self._on_done,
            on_error=self._on_error,
            on_stage=self._on_stage,
        )

    def _encode(
        self, epoch: int, ranges: Sequence[SlotRange], after: object | None, on_stage: Callable[[str], None]
    ) -> None:
        encode_ranges(**self._parts, epoch=epoch, ranges=ranges, on_stage=on_stage)
