"""Flushing on the device: peers' shards are read in place, parity goes to the store, nothing waits for it."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ghostserve.codes import Code
from ghostserve.cuda.kernels import Bound, Kernels
from ghostserve.cuda.payload import Payload
from ghostserve.cuda.ring import Ring
from ghostserve.cuda.runtime import Event, Runtime
from ghostserve.cuda.shards import FlatShard, PagedShard
from ghostserve.errors import CudaError
from ghostserve.parity.geometry import CacheLayout
from ghostserve.parity.ranges import SlotRange, num_slots, tiles
from ghostserve.parity.slots import SlotTable
from ghostserve.parity.store import ParityStore

__all__ = ["FlushMode", "Flusher", "check_blocks", "consecutive_runs", "fill_index", "warm_up"]

FlushMode = Literal["ring", "zero-copy", "auto"]

# What "auto" goes by. A decode step's slots lie scattered: one copy each would cost the host more than the kernel's
# slower writes over the link cost the device. A chunk's slots lie together: there the copy engine is faster.
ZERO_COPY_SLOTS = 256
"""At most so many slots are written by the kernel itself."""
ZERO_COPY_RUN = 4
"""So are more of them, if they lie in runs shorter than this on average."""
ZERO_COPY_ROW_BYTES = 160 << 10
"""Both hold for rows up to this long, of a few parity shards. Of longer ones (copies of all shards) just as many bytes:
a copy of those is worth the host's call."""
ZERO_COPY_PROGRAMS = 16
"""Thread blocks that saturate the link; the other multiprocessors stay with the model."""


FIRST_SLOTS = (64, 128, 256)
"""At most so many are in the first tiles: until one is laid out and encoded, the link has nothing to do."""
LAST_SLOTS = 64
"""At most so many are in the last one: when the link is done, its records are still to be written."""


@dataclass
class _Tile:
    """A tile on its way: what its frame needs to be committed. `source`: where in the ring its rows began."""

    slots: SlotTable
    sums: NDArray[np.uint64]
    done: Event
    source: int


class Flusher:
    """Encodes slots into the store's payload. Not thread-safe.

    "ring": the kernel writes parity to a frame of the ring, the copy engine takes it to the store. Every frame has a
    stream: what is done to it comes one after the other, beside what is done to the others. "zero-copy": the kernel
    writes to the store itself, where it can reach it.
    """

    def __init__(
        self,
        *,
        runtime: Runtime,
        kernels: Kernels,
        ring: Ring,
        store: ParityStore,
        payload: Payload,
        code: Code,
        layout: CacheLayout,
        mode: FlushMode = "auto",
    ) -> None:
        """Compiles the kernel. Raises `ConfigError` where the ring has no room for a slot's parity."""
        self.mode: FlushMode = mode
        self._runtime, self._kernels, self._store, self._payload = runtime, kernels, store, payload
        self._code, self._layout = code, layout
        shards = code.n + code.k
        self._in_ring, self._in_store = (ring.cut(row, shards, turns=payload.turns) for row in (payload.row_bytes, 0))
        self._streams = [runtime.stream(low_priority=True) for _ in range(self._in_ring.frames)]
        self._first_done = runtime.event()
        self._done = [runtime.event(spins=True) for _ in range(payload.turns)]
        with runtime.use(self._streams[0]):
            kernels.warm_up(code.encode_plan, [True] * code.n + [False] * code.k)
        self._streams[0].synchronize()

    def connect(self, shards: Sequence[PagedShard]) -> None:
        """From now on data shard i is read from `shards[i]`."""
        plan, size = self._code.encode_plan, self._layout.slot_bytes
        self._bound: dict[bool, Bound] = {}
        for direct, address in ((False, self._in_ring.payload), (True, self._payload.address)):
            if address is None:
                continue
            parity = [FlatShard(address + k * size, self._payload.row_bytes) for k in range(self._code.k)]
            self._bound[direct] = self._kernels.bind(plan, [*shards, *parity])

    def encode(
        self, epoch: int, ranges: Sequence[SlotRange], after: object | None, on_stage: Callable[[str], None]
    ) -> None:
        """Encode the slots of `ranges` once the event `after` has happened, and commit them under `epoch`.

        Stages and errors: as `encode_ranges`; "encoded" comes when a tile's parity is in the store and not committed.
        When this returns or raises, nothing of it is under way any more.
        """
        direct = self._writes_direct(ranges)
        frames = self._in_store if direct else self._in_ring
        pending: deque[_Tile] = deque()
        before: Event | None = None
        try:
            # A tile is laid out while those before it are on their way: the link waits for Python only once.
            for number, slots in enumerate((tiles if direct else _tiles)(ranges, frames.rows)):
                if len(pending) == frames.turns:
                    self._finish(epoch, pending.popleft(), on_stage)
                on_stage("begin")
                awaited = after if number < frames.frames else None
                pending.append(self._start(epoch, slots, number, direct, awaited, before))
                before = pending[-1].done
            while pending:
                self._finish(epoch, pending.popleft(), on_stage)
            self._payload.settle(epoch)
        except BaseException:
            # A fenced rank reports its flushes as ended: no copy may reach the store after that.
            for stream in self._streams:
                stream.synchronize()
            raise

    def _writes_direct(self, ranges: Sequence[SlotRange]) -> bool:
        if self._payload.address is None:
            return False
        if self.mode != "auto":
            return self.mode == "zero-copy"
        long = max(1.0, self._payload.row_bytes / ZERO_COPY_ROW_BYTES)
        few, slots = max(ZERO_COPY_SLOTS, ZERO_COPY_RUN * len(ranges)) / long, 0
        for r in ranges:
            slots += r.stop - r.start
            if slots > few:
                return False
        return True

    def _start(
        self,
        epoch: int,
        ranges: Sequence[SlotRange],
        number: int,
        direct: bool,
        after: object | None,
        before: Event | None,
    ) -> _Tile:
        """`after`: the shards are there; `before`: the tile before this one is in the store."""
        frames = self._in_store if direct else self._in_ring
        stream = self._streams[number % frames.frames]
        # For the ring as they lie in the store, so that as few copies as possible move them.
        slots = self._store.table(ranges, by_row=not direct)
        check_blocks(slots.block, self._layout)
        frame, turn, rows = number % frames.frames, number % frames.turns, len(slots)
        fill_index(frames.index[turn], slots, None if direct else frame * frames.rows)
        with self._runtime.use(stream):
            on_device, sums = frames.upload(turn, rows, stream)
            if after is not None:
                stream.wait_event(after)
            if direct:
                self._store.begin(epoch, slots)
            self._bound[direct].launch(on_device, rows, sums, programs=ZERO_COPY_PROGRAMS if direct else None)
            if not direct:
                # From here on the payload of these slots is anybody's guess.
                self._store.begin(epoch, slots)
                if before is not None:
                    # In this order they are committed: a late tile would hold up all that overtook it.
                    stream.wait_event(before)
                self._payload.write(consecutive_runs(slots.row), frames.row_address(frame, 0), stream)
            found = frames.download(turn, rows, stream)
            # Before the first one the model may compute for long. The others follow each other closely: to be woken
            # from sleep would take as long as a tile.
            done = self._done[turn] if number else self._first_done
            done.record(stream)
        return _Tile(slots, found.reshape(rows, frames.sums), done, frames.row_address(frame, 0))

    def _finish(self, epoch: int, tile: _Tile, on_stage: Callable[[str], None]) -> None:
        tile.done.synchronize()
        on_stage("encoded")
        # No checksum is 0 (but for one in 2^64): what reads so was never computed.
        if not tile.sums.all():
            raise CudaError(f"the encode kernel left no checksums for {len(tile.sums)} slots: did it run?")
        self._payload.commit(epoch, tile.slots, tile.sums, tile.source)
        on_stage("committed")


def _tiles(ranges: Sequence[SlotRange], rows: int) -> Iterator[Sequence[SlotRange]]:
    """At most `rows` slots at a time, few of them first and last."""
    body, left = len(ranges), LAST_SLOTS
    if num_slots(ranges) > max(FIRST_SLOTS) + LAST_SLOTS:
        while (left := left - ranges[body - 1].num_slots) >= 0:
            body -= 1
    yield from tiles(ranges[:body], rows, [min(rows, slots) for slots in FIRST_SLOTS])
    yield from tiles(ranges[body:], rows)


def consecutive_runs(rows: NDArray[np.int64]) -> list[tuple[int, int, int]]:
    """Where `rows`, int64 (S,), count on by one: (place of the first, its row, how many), for each run."""
    from ghostserve.parity.compiled import runs_loop  # brings numba, which takes half a second: only when used

    runs = np.empty((len(rows), 3), dtype=np.int64)
    count = runs_loop(rows, runs)
    return [(place, row, length) for place, row, length in runs[:count].tolist()]


def fill_index(index: NDArray[np.int32], slots: SlotTable, first: int | None) -> None:
    """Write what a kernel needs to know of `slots`, int32 (at least S, 3): block, slot, row in the payload.

    `first`: the rows count on from it; None: they are those of the store.
    """
    from ghostserve.parity.compiled import index_loop

    rows = slots.row if first is None else np.arange(first, first + len(slots))
    index_loop(slots.block, slots.slot, rows, index)


def check_blocks(blocks: NDArray[np.int64], layout: CacheLayout) -> None:
    """Raise `ValueError` for `blocks`, one a slot, that the cache does not have: kernels check nothing."""
    from ghostserve.parity.compiled import extremes_loop

    least, greatest = extremes_loop(blocks) if len(blocks) else (0, 0)
    if not 0 <= least <= greatest < layout.num_blocks:
        raise ValueError(f"blocks {least}..{greatest} were asked for, the cache has {layout.num_blocks} blocks")


def warm_up(store: ParityStore, layout: CacheLayout) -> None:
    """Compile the host's loops now (or load them from the cache), not in the first flush."""
    nothing = store.table([])
    consecutive_runs(nothing.row)
    fill_index(np.empty((0, 3), dtype=np.int32), nothing, 0)
    check_blocks(np.zeros(1, dtype=np.int64), layout)
