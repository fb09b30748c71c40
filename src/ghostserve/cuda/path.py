"""The data path of one rank on its GPU: flushes and rebuilds over peers' caches that are mapped into this process."""

import threading
from collections.abc import Callable, Collection, Sequence
from contextlib import ExitStack
from typing import Protocol

from ghostserve.codes import Backend, Code, make_backend
from ghostserve.cuda.decode import Engine
from ghostserve.cuda.file_payload import FilePayload
from ghostserve.cuda.flush import Flusher, FlushMode, warm_up
from ghostserve.cuda.host import RegisteredRegion
from ghostserve.cuda.kernels import Kernels
from ghostserve.cuda.payload import Payload, StorePayload
from ghostserve.cuda.refill import Refiller
from ghostserve.cuda.ring import MAX_RING_BYTES, Ring
from ghostserve.cuda.runtime import Runtime
from ghostserve.cuda.shards import PagedShard
from ghostserve.parity import paging
from ghostserve.parity.arena import Arena
from ghostserve.parity.file_store import FileStore
from ghostserve.parity.fit import check_fit
from ghostserve.parity.geometry import CacheLayout, ShardMap
from ghostserve.parity.ranges import SlotRange
from ghostserve.parity.store import ParityStore
from ghostserve.recovery.rebuild import RebuildReport

__all__ = ["CudaDataPath", "MappedArena"]


class MappedArena(Arena, Protocol):
    """An arena that this process's device reaches by address: its own (`DeviceArena`) or a peer's (`PeerArena`)."""

    @property
    def address(self) -> int: ...


class CudaDataPath:
    """A `DataPath` over CUDA IPC. Made before the rank is known, so that a standby has done all that takes long.

    `encode` and `rebuild` exclude each other: they share the ring. `mark` may be called at any time.
    """

    name = "cuda-ipc"

    def __init__(
        self,
        *,
        runtime: Runtime,
        store: ParityStore,
        code: Code,
        layout: CacheLayout,
        shard_map: ShardMap,
        backend: Backend | None = None,
        kernels: Kernels | None = None,
        mode: FlushMode = "auto",
        ring_bytes: int = MAX_RING_BYTES,
        pinned: RegisteredRegion | None = None,
    ) -> None:
        """Takes the ring, pins the store's payload (of one in a file: a mirror of the ring), compiles the kernel.

        `pinned`: the store's payload, if it is pinned already (see `StorePayload`). `backend`: for slots that fail
        their checksums in a rebuild. `kernels`: None makes them. `mode`: see `Flusher`; it holds for rebuilds as well,
        but for a store in a file, which only the ring leads to. Raises `UnsupportedCodeError` for a code or layout that
        the kernels don't serve, `CudaError` where the device refuses memory.
        """
        self._runtime, self._store, self._code = runtime, store, code
        self._layout, self._shard_map = layout, shard_map
        self._arenas: Sequence[MappedArena] | None = None
        self._shards: list[PagedShard] = []
        self._lock = threading.Lock()
        # What a rebuild needs of compiled host code: loaded now, not in a client's pause.
        paging.warm_up()
        warm_up(store, layout)
        with ExitStack() as stack:
            ring = Ring(runtime, ring_bytes)
            stack.callback(ring.close)
            payload = _payload(runtime, ring, store, pinned)
            stack.callback(payload.close)
            # One for both threads that launch: the lock keeps them apart.
            kernels = Kernels(layout, runtime.device) if kernels is None else kernels
            self._flusher = Flusher(
                runtime=runtime,
                kernels=kernels,
                ring=ring,
                store=store,
                payload=payload,
                code=code,
                layout=layout,
                mode=mode,
            )
            engine = Engine(
                runtime=runtime,
                kernels=kernels,
                ring=ring,
                store=store,
                payload=payload,
                shard_map=shard_map,
                mode=mode,
            )
            self._refiller = Refiller(engine, code, make_backend() if backend is None else backend)
            self._held = stack.pop_all()

    def connect(self, rank: int, arenas: Sequence[MappedArena]) -> None:
        """This process is `rank`; `arenas`, one a rank, are where the shards lie from now on.

        Called again after every rejoin, with the newcomers' arenas. The old ones must stay open until it returns.
        Raises `StoreMismatchError` if the parts do not belong together.
        """
        check_fit(self._store.geometry, self._code, self._layout, self._shard_map, arenas)
        with self._lock:
            self._arenas = arenas
            self._shards = [PagedShard.of_arena(self._layout, arena.address) for arena in arenas]
            # Where several ranks hold a shard, the nearest copy is this rank's own.
            holders = self._shard_map.holders() | {self._shard_map.shard_of(rank): rank}
            self._flusher.connect([self._shards[holders[shard]] for shard in range(self._code.n)])

    def warm_up(self, lost_ranks: Collection[int], targets: Collection[int]) -> None:
        """Compile what a rebuild of `targets` after this loss needs, before it happens."""
        with self._lock:
            self._refiller.warm_up(lost_ranks, targets)

    def encode(
        self, epoch: int, ranges: Sequence[SlotRange], after: object | None, on_stage: Callable[[str], None]
    ) -> None:
        """See `DataPath.encode`. Failures of the device are raised as `CudaError` or as torch raises them."""
        with self._lock:
            self._connected()
            self._flusher.encode(epoch, ranges, after, on_stage)

    def stage(self, epoch: int, ranges: Sequence[SlotRange]) -> None:
        """Nothing: peers read this device's memory in place."""

    def mark(self) -> object | None:
        """An event on the calling thread's current stream; see `DataPath.mark`."""
        event = self._runtime.event()
        event.record(self._runtime.current_stream())
        return event

    def rebuild(
        self, lost_ranks: Collection[int], ranges: Sequence[SlotRange], targets: Collection[int]
    ) -> RebuildReport:
        """See `DataPath.rebuild`. Whatever writes to the arenas must have ended; returns with all bytes in place."""
        with self._lock:
            return self._refiller.rebuild(lost_ranks, ranges, targets, self._connected(), self._shards)

    def close(self) -> None:
        """Give back the ring and unpin the store; arenas and store stay their owners'. Idempotent."""
        with self._lock:
            self._arenas = None
            self._held.close()

    def _connected(self) -> Sequence[MappedArena]:
        if self._arenas is None:
            raise ValueError("this data path is not connected to the group's arenas (or is closed)")
        return self._arenas


def _payload(runtime: Runtime, ring: Ring, store: ParityStore, pinned: RegisteredRegion | None) -> Payload:
    return FilePayload(ring, store) if isinstance(store, FileStore) else StorePayload(runtime, store, pinned=pinned)
