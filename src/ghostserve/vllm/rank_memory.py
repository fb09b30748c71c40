"""One rank's part in keeping KV safe: its cache where peers read it, its flushes, the rebuild of what it lost."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import numpy as np

from ghostserve.checkpoint.checkpointer import Checkpointer
from ghostserve.checkpoint.encoding import encode_ranges
from ghostserve.checkpoint.tasks import FlushTask
from ghostserve.codes import Code, make_backend, make_code
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

__all__ = ["POISON", "HostMemory", "RankMemory"]

POISON = 0xFF  # NaN in every floating-point type: a slot that was not rebuilt can't pass for one
_DRAIN_SECONDS = 30.0


class RankMemory(ABC):
    """Goes through `attach` and `release` with every epoch. All calls are the worker's main thread's."""

    data_path: ClassVar[str]
    """How flushes and rebuilds go, as the status calls it."""

    def __init__(
        self,
        rank: int,
        layout: CacheLayout,
        *,
        on_done: Callable[[int, tuple[int, ...]], object],
        on_error: Callable[[int, FlushTask, Exception], object],
        on_stage: Callable[[str], None],
    ) -> None:
        """`layout` is that of this rank's cache. The callbacks are `Checkpointer`'s."""
        self.rank, self.layout = rank, layout
        self._on_done, self._on_error, self._on_stage = on_done, on_error, on_stage
        self._store: ParityStore | None = None
        self._checkpointer: Checkpointer | None = None
        self._attached = False

    @property
    @abstractmethod
    def handle(self) -> bytes:
        """By which peers map this rank's cache."""

    def attach(self, handles: Sequence[bytes], store: StoreHandle) -> None:
        """Map the caches of all ranks and the parity store. Raises `PeerAccessError` for a peer that has died since."""
        arenas = self._map(handles)
        code = make_code(store.parity, store.num_shards)
        if code is None:
            return
        shard_map = ShardMap(len(handles), store.num_shards)
        if self._store is None:
            self._store = self._open_store(store, code)
        self._connect(self._store, code, shard_map, arenas)
        if self._checkpointer is None:
            self._checkpointer = self._make_checkpointer(self._store)
        self._attached = True

    def submit(self, epoch: int, tasks: Sequence[FlushTask]) -> None:
        """A step has run here, so all ranks have written its slots: flush those that are this rank's to encode."""
        own = [task for task in tasks if task.encoder == self.rank]
        if self._checkpointer is None or not own:
            return
        after = self._mark()
        for task in own:
            self._checkpointer.submit(epoch, task, after)

    def rebuild(self, lost_ranks: Sequence[int], ranges: Sequence[SlotRange], *, skip: bool) -> RebuildReport | None:
        """Fill the own cache's `ranges` again. `skip`: leave them poisoned, for the proof that it would be noticed."""
        self._poison(ranges)
        if skip or not self._attached:
            return None
        return self._rebuild(lost_ranks, ranges)

    def release(self) -> None:
        """Let the shadow come to rest, then let go of the peers: nothing here uses their memory afterwards."""
        if self._checkpointer is not None and not self._checkpointer.drain(_DRAIN_SECONDS):
            raise GhostServeError(f"the flush of rank {self.rank} did not end within {_DRAIN_SECONDS} s")
        self._attached = False
        self._unmap()

    def _open_store(self, store: StoreHandle, code: Code) -> ParityStore:
        geometry = StoreGeometry(code.n, code.k, store.num_parity_blocks, store.block_size, store.slot_bytes)
        with open_peer(store.memory) as memory:
            return ParityStore.attach(memory.fd, geometry)

    def _make_checkpointer(self, store: ParityStore) -> Checkpointer:
        return Checkpointer(
            rank=self.rank,
            encode=self._encode,
            current_epoch=lambda: store.epoch,
            on_done=self._on_done,
            on_error=self._on_error,
            on_stage=self._on_stage,
        )

    @abstractmethod
    def _map(self, handles: Sequence[bytes]) -> Sequence[Any]:
        """The caches of all ranks; the own one is among them."""

    @abstractmethod
    def _connect(self, store: ParityStore, code: Code, shard_map: ShardMap, arenas: Sequence[Any]) -> None:
        """From here on `_encode` and `_rebuild` are about these."""

    @abstractmethod
    def _mark(self) -> object | None:
        """What `_encode` has to wait for, so that it finds all that was computed up to now."""

    @abstractmethod
    def _encode(
        self, epoch: int, ranges: Sequence[SlotRange], after: object | None, on_stage: Callable[[str], None]
    ) -> None:
        """See `Checkpointer`."""

    @abstractmethod
    def _poison(self, ranges: Sequence[SlotRange]) -> None:
        """NaN in these slots of the own cache."""

    @abstractmethod
    def _rebuild(self, lost_ranks: Sequence[int], ranges: Sequence[SlotRange]) -> RebuildReport:
        """Fill the own cache from the peers' and the store."""

    @abstractmethod
    def _unmap(self) -> None:
        """Let go of the peers. Idempotent."""


class HostMemory(RankMemory):
    """A rank whose cache lies in host memory."""

    data_path = "host"

    def __init__(self, rank: int, region: SharedRegion, layout: CacheLayout, **callbacks: Any) -> None:
        """`region` holds this rank's cache as `layout` says. `callbacks`: `RankMemory`'s."""
        super().__init__(rank, layout, **callbacks)
        self._region = region
        self._backend = make_backend()
        self._backend.warm_up()
        paging.warm_up()
        self._peers: list[SharedRegion] = []
        self._parts: dict[str, Any] = {}

    @property
    def handle(self) -> bytes:
        return handle_of(self._region)

    def _map(self, handles: Sequence[bytes]) -> Sequence[HostArena]:
        arenas = []
        for rank, handle in enumerate(handles):
            if rank == self.rank:
                arenas.append(HostArena(self._region.array))
            else:
                self._peers.append(open_peer(handle))
                arenas.append(HostArena(self._peers[-1].array))
        return arenas

    def _connect(self, store: ParityStore, code: Code, shard_map: ShardMap, arenas: Sequence[Any]) -> None:
        self._backend.warm_up(rows=code.rows, slot_bytes=self.layout.slot_bytes)
        self._parts = {
            "store": store,
            "code": code,
            "backend": self._backend,
            "arenas": arenas,
            "layout": self.layout,
            "shard_map": shard_map,
        }

    def _mark(self) -> None:
        return None  # what was computed is there

    def _encode(
        self, epoch: int, ranges: Sequence[SlotRange], after: object | None, on_stage: Callable[[str], None]
    ) -> None:
        encode_ranges(**self._parts, epoch=epoch, ranges=ranges, on_stage=on_stage)

    def _poison(self, ranges: Sequence[SlotRange]) -> None:
        for tile in tiles(ranges, 1024):
            poison = np.full((num_slots(tile), self.layout.slot_bytes), POISON, np.uint8)
            paging.scatter(self._region.array, self.layout, tile, poison)

    def _rebuild(self, lost_ranks: Sequence[int], ranges: Sequence[SlotRange]) -> RebuildReport:
        return rebuild(**self._parts, lost_ranks=lost_ranks, targets=(self.rank,), ranges=ranges)

    def _unmap(self) -> None:
        self._parts = {}
        while self._peers:
            self._peers.pop().close()
