"""The way over host memory, for machines where one process can't reach another's device memory.

Every rank keeps a mirror of its cache in shared host memory and copies its own shards there after each step that has
something to flush; encoder and rebuild then work on the mirrors with the CPU, as without a GPU. This costs as much host
memory as the caches have, and the link carries every byte of KV instead of the parity alone: a fallback, not a choice.
"""

import time
from collections.abc import Callable, Collection, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ghostserve.checkpoint.encoding import encode_ranges
from ghostserve.codes import Backend, Code, make_backend
from ghostserve.cuda.arena import DeviceArena
from ghostserve.cuda.copying import COPY
from ghostserve.cuda.flush import check_blocks
from ghostserve.cuda.host import RegisteredRegion
from ghostserve.cuda.kernels import Bound, Kernels
from ghostserve.cuda.ring import Ring
from ghostserve.cuda.runtime import Event, Runtime, Stream
from ghostserve.cuda.shards import PagedShard, slot_index
from ghostserve.errors import CudaError, StaleEpochError
from ghostserve.parity import paging
from ghostserve.parity.arena import HostArena
from ghostserve.parity.fit import check_fit
from ghostserve.parity.geometry import CacheLayout, ShardMap
from ghostserve.parity.memory import SharedRegion
from ghostserve.parity.ranges import SlotRange, merge, num_slots, singles, tiles
from ghostserve.parity.store import ParityStore
from ghostserve.recovery.rebuild import RebuildReport, rebuild

__all__ = ["StagedDataPath"]

RING_BYTES = 4 << 20  # slot indices only
POLL_SECONDS = 0.0005
PAGE = 4096


@dataclass
class _Connection:
    """What belongs to one rank and its arena."""

    rank: int
    pinned: RegisteredRegion
    down: Bound
    up: Bound
    stream: Stream


class StagedDataPath:
    """A `DataPath` by mirrors in host memory.

    No collective: behind its mirror every rank keeps a word that says how far it is, (epoch, how many `stage` calls of
    that epoch have arrived), and an encoder waits for all words, or for the fence. All ranks run the same steps, so
    equal counts mean equal steps.
    """

    name = "cuda-staged"

    def __init__(
        self,
        *,
        runtime: Runtime,
        store: ParityStore,
        code: Code,
        layout: CacheLayout,
        shard_map: ShardMap,
        mirrors: Sequence[SharedRegion],
        backend: Backend | None = None,
        kernels: Kernels | None = None,
    ) -> None:
        """`mirrors`: one a rank, of `mirror_bytes` bytes. Raises as `CudaDataPath` does."""
        self._arenas = [HostArena(mirror.array[: layout.total_bytes]) for mirror in mirrors]
        check_fit(store.geometry, code, layout, shard_map, self._arenas)
        self._runtime, self._store, self._code = runtime, store, code
        self._layout, self._shard_map, self._mirrors = layout, shard_map, mirrors
        self._backend = make_backend() if backend is None else backend
        self._backend.warm_up(rows=code.rows, slot_bytes=layout.slot_bytes)
        paging.warm_up()
        self._progress = [m.array[self.mirror_bytes(layout) - PAGE :][:8].view(np.uint32) for m in mirrors]
        self._connection: _Connection | None = None
        self._staged = (0, 0)
        self._turn = 0
        with ExitStack() as stack:
            ring = Ring(runtime, RING_BYTES)
            stack.callback(ring.close)
            self._frames = ring.cut(0, 2)
            self._done: list[Event | None] = [None] * self._frames.frames
            self._kernels = Kernels(layout, runtime.device) if kernels is None else kernels
            self._kernels.warm_up(COPY, [True, True])
            self._held = stack.pop_all()

    @staticmethod
    def mirror_bytes(layout: CacheLayout) -> int:
        """Bytes of each rank's mirror: the cache and a page for its progress."""
        return -(-layout.total_bytes // PAGE) * PAGE + PAGE

    def connect(self, rank: int, arena: DeviceArena) -> None:
        """This process is `rank` and its cache is `arena`; pins its mirror."""
        self._disconnect()
        pinned = RegisteredRegion(self._runtime, self._mirrors[rank])
        device = PagedShard.of_arena(self._layout, arena.address)
        mirror = PagedShard.of_arena(self._layout, pinned.address)
        self._connection = _Connection(
            rank,
            pinned,
            down=self._kernels.bind(COPY, [device, mirror]),
            up=self._kernels.bind(COPY, [mirror, device]),
            stream=self._runtime.stream(),
        )
        self._staged = (0, 0)

    def stage(self, epoch: int, ranges: Sequence[SlotRange]) -> None:
        """Main thread, right after a step was launched: copy this rank's shards of `ranges` to its mirror.

        Every rank does so for every step that has flush tasks, with the slots of all of them. Returns at once, unless
        the link is several steps behind.
        """
        own = self._connected()
        if not num_slots(ranges):
            return
        before, count = self._staged
        self._staged = (epoch, count + 1 if epoch == before else 1)
        written = self._runtime.event()
        written.record(self._runtime.current_stream())
        own.stream.wait_event(written)
        parts = list(tiles(ranges, self._frames.rows - 1))
        for number, tile in enumerate(parts):
            self._copy(own, own.down, tile, self._staged if number == len(parts) - 1 else None)

    def mark(self) -> object | None:
        """Which `stage` call was the last: `encode` waits until every rank's has arrived."""
        return self._staged

    def encode(
        self, epoch: int, ranges: Sequence[SlotRange], after: object | None, on_stage: Callable[[str], None]
    ) -> None:
        """See `DataPath.encode`."""
        if after is not None:
            assert isinstance(after, tuple)
            self._await(epoch, after[1])
        encode_ranges(
            store=self._store,
            code=self._code,
            backend=self._backend,
            arenas=self._arenas,
            layout=self._layout,
            shard_map=self._shard_map,
            epoch=epoch,
            ranges=ranges,
            on_stage=on_stage,
        )

    def rebuild(
        self, lost_ranks: Collection[int], ranges: Sequence[SlotRange], targets: Collection[int]
    ) -> RebuildReport:
        """See `DataPath.rebuild`; refills the mirror, then the device. `targets` can only be this rank.

        A survivor that did not match is put right in its mirror; its device was never read.
        """
        own = self._connected()
        if list(targets) != [own.rank]:
            raise ValueError(f"rank {own.rank} can't refill {sorted(targets)}: over mirrors each rank refills itself")
        report = rebuild(
            store=self._store,
            code=self._code,
            backend=self._backend,
            arenas=self._arenas,
            layout=self._layout,
            shard_map=self._shard_map,
            lost_ranks=lost_ranks,
            ranges=ranges,
            targets=targets,
        )
        failed = set(singles(report.failed))
        for tile in tiles(merge(s for s in singles(ranges) if s not in failed), self._frames.rows - 1):
            records = self._store.records(tile)[:, self._shard_map.shard_of(own.rank)]
            sums = self._copy(own, own.up, tile, None)
            own.stream.synchronize()
            if not (sums == records[:, None]).all():
                raise CudaError(f"verified KV of {num_slots(tile)} slots did not arrive on the device as it was sent")
        return report

    def close(self) -> None:
        """Give back the ring and unpin the mirror. Idempotent."""
        self._disconnect()
        self._held.close()

    def _copy(
        self, own: _Connection, bound: Bound, tile: Sequence[SlotRange], progress: tuple[int, int] | None
    ) -> NDArray[np.uint64]:
        """Queue the copy of a tile's slots, and the news of it; its checksums, once the stream has passed."""
        count = num_slots(tile)
        # One row more than there are slots: progress goes up with the index and comes down behind the shards.
        slots = slot_index(tile)
        check_blocks(slots[:, 0].astype(np.int64), self._layout)
        frame, self._turn = self._turn, (self._turn + 1) % self._frames.frames
        before = self._done[frame]
        if before is not None:
            before.synchronize()
        index = self._frames.index[frame]
        index[:count] = slots
        index[count, :2] = (0, 0) if progress is None else progress
        on_device, sums = self._frames.upload(frame, count + 1, own.stream)
        with self._runtime.use(own.stream):
            bound.launch(on_device, count, sums)
        found = self._frames.download(frame, count + 1, own.stream)
        if progress is not None:
            word = self._progress[own.rank].__array_interface__["data"][0]
            self._runtime.copy(int(word), on_device.data_ptr() + 12 * count, 8, own.stream)
        done = self._runtime.event()
        done.record(own.stream)
        self._done[frame] = done
        return found.reshape(count + 1, 2)[:count]

    def _await(self, epoch: int, count: int) -> None:
        """Until all ranks' mirrors have what was staged by then; `StaleEpochError` if the group is fenced before."""
        waiting = list(range(self._shard_map.world_size))
        while waiting:
            waiting = [r for r in waiting if not self._arrived(r, epoch, count)]
            found = self._store.epoch
            if found != epoch:
                raise StaleEpochError(found=found, expected=epoch)
            if waiting:
                time.sleep(POLL_SECONDS)

    def _arrived(self, rank: int, epoch: int, count: int) -> bool:
        at, calls = self._progress[rank].tolist()
        return bool(at == epoch and calls >= count)

    def _connected(self) -> _Connection:
        if self._connection is None:
            raise ValueError("this data path is not connected to its rank's arena (or is closed)")
        return self._connection

    def _disconnect(self) -> None:
        own, self._connection = self._connection, None
        if own is not None:
            own.stream.synchronize()
            own.pinned.close()
