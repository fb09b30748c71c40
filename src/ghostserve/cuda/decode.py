"""The pipeline of a rebuild: parity of the next tile comes up the link while the kernel runs over this one."""

from collections import deque
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ghostserve.codes import Plan
from ghostserve.cuda.copying import COPY
from ghostserve.cuda.flush import FlushMode, check_blocks, consecutive_runs, fill_index
from ghostserve.cuda.kernels import Bound, Kernels
from ghostserve.cuda.payload import Payload
from ghostserve.cuda.ring import Ring
from ghostserve.cuda.runtime import Event, Runtime
from ghostserve.cuda.shards import FlatShard, PagedShard
from ghostserve.parity.geometry import ShardMap
from ghostserve.parity.ranges import SlotRange, tiles
from ghostserve.parity.slots import SlotTable
from ghostserve.parity.store import ParityStore

__all__ = ["DecodeJob", "Engine", "Refilled"]

FRAMES = 3
"""Two keep the copy engine busy; with the third it is also busy while the host sleeps a little long."""

TURNS = FRAMES + 1
"""A tile's checksums are compared while its successor in the frame is under way."""

ZERO_COPY_RUN_BYTES = 512 << 10
"""Shorter runs of parity are read by the kernel itself: the copy engine rests too long between them."""

SAMPLE = 64
"""Ranges that are looked at to see in how long runs the parity lies."""


class Engine:
    """What all rebuilds of a rank share: streams, events and where things are. Not thread-safe."""

    def __init__(
        self,
        *,
        runtime: Runtime,
        kernels: Kernels,
        ring: Ring,
        store: ParityStore,
        payload: Payload,
        shard_map: ShardMap,
        mode: FlushMode,
    ) -> None:
        """`mode`: does parity go through the ring, or does the kernel read it in the store?"""
        self.runtime, self.kernels, self.ring = runtime, kernels, ring
        self.store, self.payload, self.shard_map = store, payload, shard_map
        self.layout, self.mode = kernels.layout, mode
        self.compute, self.copies = runtime.stream(), runtime.stream()
        self.done = [runtime.event() for _ in range(TURNS)]
        self.fetched = [runtime.event() for _ in range(FRAMES)]


@dataclass(frozen=True)
class Refilled:
    """What became of the slots that were asked for, in their order: bool (S,) each.

    committed: there was parity for them, so they were written. good: and every checksum is the recorded one.
    """

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
    """A tile on its way: its committed slots, and their checksums once it is done (None where there are none)."""

    committed: NDArray[np.bool_]
    slots: SlotTable
    sums: NDArray[np.uint64] | None
    done: Event


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
        self._spans = [] if self._direct else _neighbours(parity)
        self._fetches = sum(count for _, count in self._spans)
        sums = (len(plan.inputs) + len(plan.outputs) if plan else 0) + 2 * len(copies)
        self._frames = engine.ring.cut((self._fetches + len(scratch)) * size, sums, FRAMES, TURNS)
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

    def run(self) -> Refilled:
        """Refill all committed slots. Nothing is under way when this returns or raises."""
        engine, frames = self._engine, self._frames
        pending: deque[_Tile] = deque()
        done = [(np.empty(0, dtype=np.bool_), np.empty(0, dtype=np.bool_))]
        try:
            with engine.runtime.use(engine.compute):
                for number, tile in enumerate(tiles(self._ranges, frames.rows)):
                    ready = None
                    if len(pending) == frames.frames:
                        ready = pending.popleft()
                        ready.done.synchronize()
                    pending.append(self._start(tile, number))
                    # Only now: the device should not wait for what the host has to compare.
                    if ready is not None:
                        done.append((ready.committed, self._check(ready)))
            for last in pending:
                last.done.synchronize()
                done.append((last.committed, self._check(last)))
        except BaseException:
            # Nothing may write to the arena, nor read the store, once this has returned.
            engine.copies.synchronize()
            engine.compute.synchronize()
            raise
        committed, good = (np.concatenate([tile[i] for tile in done]) for i in range(2))
        return Refilled(committed, good)

    def _reads_direct(self, shards: int) -> bool:
        if self._engine.payload.address is None:
            return False
        if self._engine.mode != "auto":
            return self._engine.mode == "zero-copy"
        # The first ones stand for all: the link waits until this is decided.
        sample = self._engine.store.table(self._ranges[:SAMPLE])
        read = len(sample) * shards * self._engine.layout.slot_bytes
        # A part of each row is a 2-D copy: between two of them the copy engine rests four times as long.
        shortest = ZERO_COPY_RUN_BYTES * (1 if shards == self._engine.store.geometry.num_parity else 3)
        return read < shortest * len(consecutive_runs(sample.row))

    def _flat(self, parity: Sequence[int], scratch: Sequence[int]) -> Mapping[int, FlatShard]:
        """Where token-major shards lie: one address and one stride for the rows of all frames together."""
        size, n = self._engine.layout.slot_bytes, self._engine.shard_map.num_shards
        payload = self._engine.payload
        if self._direct and payload.address is not None:
            return {s: FlatShard(payload.address + (s - n) * size, payload.row_bytes) for s in parity}
        begin, rows = self._frames.payload, self._frames.rows * self._frames.frames
        found: dict[int, FlatShard] = {}
        for first, count in self._spans:
            found |= {n + first + i: FlatShard(begin + i * size, count * size) for i in range(count)}
            begin += rows * count * size
        return found | {s: FlatShard(begin + i * rows * size, size) for i, s in enumerate(scratch)}

    def _start(self, tile: Sequence[SlotRange], number: int) -> _Tile:
        engine, frames = self._engine, self._frames
        frame, turn = number % frames.frames, number % frames.turns
        slots = engine.store.table(tile)
        check_blocks(slots.block, engine.layout)
        committed = engine.store.committed_slots(slots)
        if not committed.all():
            slots = slots[committed]
        found = self._launch(slots, frame, turn) if len(slots) else None
        engine.done[turn].record(engine.compute)
        return _Tile(committed, slots, found, engine.done[turn])

    def _launch(self, slots: SlotTable, frame: int, turn: int) -> NDArray[np.uint64]:
        engine, frames, count = self._engine, self._frames, len(slots)
        first = frame * frames.rows
        fill_index(frames.index[turn], slots, None if self._direct else first)
        # On the copies' stream: on the other it would queue behind the parity of the next tiles.
        on_device, sums = frames.upload(turn, count, engine.copies)
        runs = consecutive_runs(slots.row) if self._spans else []
        begin = frames.payload
        for shard, width in self._spans:
            row_bytes = width * engine.layout.slot_bytes
            engine.payload.read(runs, shard, width, begin + first * row_bytes, engine.copies)
            begin += frames.rows * frames.frames * row_bytes
        engine.fetched[frame].record(engine.copies)
        engine.compute.wait_event(engine.fetched[frame])
        at = 0
        for one in self._passes:
            one.bound.launch(on_device, count, sums[at:] if at else sums)
            at += count * len(one.shards)
        return frames.download(turn, count, engine.compute)

    def _check(self, tile: _Tile) -> NDArray[np.bool_]:
        """For which slots every checksum of every shard that was read or written is the recorded one."""
        good = tile.committed.copy()
        if tile.sums is None:
            return good
        count, at = len(tile.slots), 0
        for one in self._passes:
            width = len(one.shards)
            sums = tile.sums[at : at + count * width].reshape(count, width)
            good[tile.committed] &= self._engine.store.matches(tile.slots, one.shards, sums)
            at += count * width
        return good


def _neighbours(shards: Sequence[int]) -> list[tuple[int, int]]:
    """`shards`, ascending, as runs: (the first, how many follow each other)."""
    runs: list[tuple[int, int]] = []
    for shard in shards:
        if runs and shard == sum(runs[-1]):
            runs[-1] = runs[-1][0], runs[-1][1] + 1
        else:
            runs.append((shard, 1))
    return runs
