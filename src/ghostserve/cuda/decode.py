"""The pipeline of a rebuild: parity of the next tile comes up the link while the kernel runs over this one."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray

from ghostserve.codes import Plan
from ghostserve.cuda.copying import COPY
from ghostserve.cuda.flush import FlushMode, check_blocks, contiguous_runs
from ghostserve.cuda.kernels import Bound, Kernels
from ghostserve.cuda.payload import StorePayload
from ghostserve.cuda.ring import Ring
from ghostserve.cuda.runtime import Runtime
from ghostserve.cuda.shards import FlatShard, PagedShard
from ghostserve.parity.geometry import ShardMap
from ghostserve.parity.ranges import SlotRange, num_slots, tiles
from ghostserve.parity.slots import SlotTable
from ghostserve.parity.store import ParityStore

__all__ = ["Arrived", "DecodeJob", "Engine"]

FRAMES = 2
"""Large tiles: the host, which queues every copy, must be faster than the link. Two keep the copy engine busy."""

ZERO_COPY_RUN_BYTES = 1 << 20
"""Shorter runs of parity are read by the kernel itself: a copy for each would keep the host too busy."""


class Engine:
    """What all rebuilds of a rank share: streams, events and where things are. Not thread-safe."""

    def __init__(
        self,
        *,
        runtime: Runtime,
        kernels: Kernels,
        ring: Ring,
        store: ParityStore,
        payload: StorePayload,
        shard_map: ShardMap,
        mode: FlushMode,
    ) -> None:
        """`mode`: does parity go through the ring, or does the kernel read it in the store?"""
        self.runtime, self.kernels, self.ring = runtime, kernels, ring
        self.store, self.payload, self.shard_map = store, payload, shard_map
        self.layout, self.mode = kernels.layout, mode
        self.compute, self.copies = runtime.stream(), runtime.stream()
        self.done = [runtime.event() for _ in range(FRAMES)]
        self.fetched = [runtime.event() for _ in range(FRAMES)]


@dataclass(frozen=True)
class Arrived:
    """A tile that is through: which of its slots were committed, and for which of those every checksum is right."""

    slots: Sequence[SlotRange]
    committed: NDArray[np.bool_]
    good: NDArray[np.bool_]


@dataclass(frozen=True)
class _Pass:
    """One kernel that runs over every tile. `shards`: which shard stands at each of its positions."""

    bound: Bound
    shards: tuple[int, ...]
    inputs: int


@dataclass(frozen=True)
class _Tile:
    """A tile on its way; `sums` is None where none of it is committed."""

    frame: int
    slots: Sequence[SlotRange]
    committed: NDArray[np.bool_]
    asked: SlotTable
    sums: NDArray[np.uint64] | None


class DecodeJob:
    """One rebuild: kernels ("passes") over tiles, the plan's first, then copies from replica to replica."""

    def __init__(
        self,
        engine: Engine,
        plan: Plan | None,
        decoded: Collection[int],
        copied: Collection[int],
        targets: Collection[int],
        lost_ranks: Collection[int],
        shards: Sequence[PagedShard],
        ranges: Sequence[SlotRange],
    ) -> None:
        """`plan` computes the shards `decoded`, of which no holder lives (None: there are none); `copied` have one.

        `shards`: one a rank. Raises `ConfigError` where the ring has no room for what a slot needs.
        """
        self._engine, self._ranges = engine, ranges
        where, size, n = engine.shard_map, engine.layout.slot_bytes, engine.shard_map.num_shards
        holders = {s: tuple(r for r in where.ranks_of(s) if r in targets) for s in (*decoded, *copied)}
        self.decoded_arenas = sum(len(holders[s]) for s in decoded)
        self.copied_arenas = sum(len(holders[s]) for s in copied)
        parity = [s - n for s in plan.inputs if s >= n] if plan else []
        scratch = [s for s in plan.outputs if s not in decoded] if plan else []
        copies = [(where.live_ranks_of(s, lost_ranks)[0], r) for s in sorted(copied) for r in holders[s]]
        # A shard that several targets hold is computed once.
        copies += [(holders[s][0], r) for s in sorted(decoded) for r in holders[s][1:]]
        # A slot has one row number: it can't be the store's for parity and the ring's for scratch.
        self._direct = not scratch and self._reads_direct(len(parity))
        # Fetched are all parity shards from the first to the last that is read: codes read neighbours.
        self._first, self._fetches = (min(parity), max(parity) - min(parity) + 1) if parity else (0, 0)
        if self._direct:
            self._fetches = 0
        sums = (len(plan.inputs) + len(plan.outputs) if plan else 0) + 2 * len(copies)
        self._frames = engine.ring.cut((self._fetches + len(scratch)) * size, sums, FRAMES)
        self._passes: list[_Pass] = []
        if plan:
            live = where.holders(lost_ranks)
            at: dict[int, PagedShard | FlatShard] = {s: shards[live[s]] for s in plan.inputs if s < n}
            at |= {s: shards[holders[s][0]] for s in decoded}
            at |= self._flat([n + k for k in parity], scratch)
            positions = (*plan.inputs, *plan.outputs)
            bound = engine.kernels.bind(plan, [at[s] for s in positions])
            self._passes.append(_Pass(bound, positions, len(plan.inputs)))
        for source, target in copies:
            shard = where.shard_of(target)
            bound = engine.kernels.bind(COPY, [shards[source], shards[target]])
            self._passes.append(_Pass(bound, (shard, shard), 1))
        self.inputs = sum(one.inputs for one in self._passes)
        """Shards that are read for each slot."""

    def run(self, on_tile: Callable[[Arrived], None]) -> None:
        """Refill all committed slots; `on_tile` is told of every tile in order. Nothing is under way afterwards."""
        engine, frames = self._engine, self._frames.frames
        pending: list[_Tile] = []
        try:
            table, first = engine.store.table(self._ranges), 0
            for number, tile in enumerate(tiles(self._ranges, self._frames.rows)):
                part = table[first : first + self._frames.rows]
                first += self._frames.rows
                ready = None
                if len(pending) == frames:
                    ready = self._wait(pending.pop(0))
                pending.append(self._start(tile, part, number % frames))
                # Only now: the device should not wait for what the host has to compare.
                if ready is not None:
                    on_tile(self._check(ready))
            for last in pending:
                on_tile(self._check(self._wait(last)))
        except BaseException:
            # Nothing may write to the arena, nor read the store, once this has returned.
            engine.copies.synchronize()
            engine.compute.synchronize()
            raise

    def _reads_direct(self, shards: int) -> bool:
        if self._engine.mode != "auto":
            return self._engine.mode == "zero-copy"
        follows = sum(
            (b.parity_block - a.parity_block) * self._engine.layout.block_size == a.stop - b.start
            for a, b in pairwise(self._ranges)
        )
        runs = max(1, len(self._ranges) - follows)
        return num_slots(self._ranges) * shards * self._engine.layout.slot_bytes < ZERO_COPY_RUN_BYTES * runs

    def _flat(self, parity: Sequence[int], scratch: Sequence[int]) -> Mapping[int, FlatShard]:
        """Where token-major shards lie: one address and one stride for the rows of all frames together."""
        size, n = self._engine.layout.slot_bytes, self._engine.shard_map.num_shards
        if self._direct:
            payload = self._engine.payload
            return {s: FlatShard(payload.address + (s - n) * size, payload.row_bytes) for s in parity}
        begin, rows = self._frames.payload, self._frames.rows * self._frames.frames
        found = {s: FlatShard(begin + (s - n - self._first) * size, self._fetches * size) for s in parity}
        begin += rows * self._fetches * size
        return found | {s: FlatShard(begin + i * rows * size, size) for i, s in enumerate(scratch)}

    def _start(self, tile: Sequence[SlotRange], table: SlotTable, frame: int) -> _Tile:
        engine, frames = self._engine, self._frames
        committed = engine.store.committed_slots(table)
        asked = table if committed.all() else table[committed]
        if not len(asked):
            return _Tile(frame, tile, committed, asked, None)
        places, runs = (asked.row, []) if self._direct else contiguous_runs(asked.row)
        rows = places if self._direct else places + frame * frames.rows
        index = np.stack([asked.block, asked.slot, rows], axis=1).astype(np.int32)
        check_blocks(index, engine.layout)
        # On the copies' stream: on the other it would queue behind the parity of the next tiles.
        on_device, sums = frames.upload(frame, index, engine.copies)
        if self._fetches:
            width = self._fetches * engine.layout.slot_bytes
            for place, row, count in runs:
                target = frames.payload + (frame * frames.rows + place) * width
                engine.payload.read(row, count, self._first, self._fetches, target, engine.copies)
        engine.fetched[frame].record(engine.copies)
        engine.compute.wait_event(engine.fetched[frame])
        self._launch(on_device, sums)
        found = frames.download(frame, len(index), engine.compute)
        engine.done[frame].record(engine.compute)
        return _Tile(frame, tile, committed, asked, found)

    def _launch(self, index: torch.Tensor, sums: torch.Tensor) -> None:
        count, at = len(index), 0
        with self._engine.runtime.use(self._engine.compute):
            for one in self._passes:
                width = len(one.shards)
                one.bound.launch(index, count, sums[at : at + count * width].view(count, width))
                at += count * width

    def _wait(self, tile: _Tile) -> _Tile:
        """The tile with its checksums in memory of its own: the frame's will be overwritten."""
        if tile.sums is None:
            return tile
        self._engine.done[tile.frame].synchronize()
        return replace(tile, sums=tile.sums.copy())

    def _check(self, tile: _Tile) -> Arrived:
        """Compare every checksum of every shard that was read or written with the recorded one."""
        count, at = len(tile.asked), 0
        good = np.ones(count, dtype=np.bool_)
        if tile.sums is not None:
            records = self._engine.store.records(tile.asked)
            for one in self._passes:
                width = len(one.shards)
                sums = tile.sums[at : at + count * width].reshape(count, width)
                good &= (sums == records[:, list(one.shards)]).all(axis=1)
                at += count * width
        return Arrived(tile.slots, tile.committed, good)
