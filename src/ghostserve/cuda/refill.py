"""Rebuilding on the device: parity comes up over the link while survivors' shards are read and the lost ones written.

Everything is verified by the checksums that the kernels take of all that they read and write. Slots where any of them
is not the recorded one go to `recovery.rebuild`, which knows what to do about each kind of fault.
"""

import time
from collections.abc import Collection, Sequence
from dataclasses import replace

import numpy as np

from ghostserve.codes import Backend, Code, Plan
from ghostserve.cuda.copying import COPY
from ghostserve.cuda.decode import DecodeJob, Engine
from ghostserve.cuda.shards import PagedShard
from ghostserve.parity.arena import Arena
from ghostserve.parity.ranges import SlotRange, num_slots, reordered, select, store_order, tiles
from ghostserve.recovery.rebuild import RebuildReport, rebuild

__all__ = ["Refiller"]

POISON = 0xFF
_POISON_SLOTS = 4096


class Refiller:
    """Refills lost ranks' arenas. Not thread-safe."""

    def __init__(self, engine: Engine, code: Code, backend: Backend) -> None:
        """`backend` serves the slots where something does not match."""
        self._engine, self._code, self._backend = engine, code, backend
        # Kernels are kept with the plan object: ask the code for each plan once.
        self._plans: dict[tuple[frozenset[int], frozenset[int]], Plan] = {}

    def warm_up(self, lost_ranks: Collection[int], targets: Collection[int]) -> None:
        """Compile now what `rebuild` of these would compile first."""
        kernels, n = self._engine.kernels, self._code.n
        lost, decoded, copied = self._shards(lost_ranks, targets)
        with self._engine.runtime.use(self._engine.compute):
            if decoded and len(lost) <= self._code.k:
                plan = self._plan(lost, decoded)
                # Survivors and what is wanted lie in caches; parity, and what is computed on the way, does not.
                kernels.warm_up(plan, [*(s < n for s in plan.inputs), *(s in decoded for s in plan.outputs)])
            if copied:
                kernels.warm_up(COPY, [True, True])
        self._engine.compute.synchronize()

    def rebuild(
        self,
        lost_ranks: Collection[int],
        ranges: Sequence[SlotRange],
        targets: Collection[int],
        arenas: Sequence[Arena],
        shards: Sequence[PagedShard],
    ) -> RebuildReport:
        """See `DataPath.rebuild`. `arenas` and `shards`: the same memory, one a rank, all of it mapped here."""
        began = time.perf_counter()
        if not frozenset(targets) <= frozenset(lost_ranks):
            raise ValueError(f"targets {sorted(targets)} must be among the lost ranks {sorted(lost_ranks)}")
        lost, decoded, copied = self._shards(lost_ranks, targets)
        left = tuple(ranges)
        read = rebuilt = copies = 0
        if ranges and (decoded or copied) and len(lost) <= self._code.k:
            plan = self._plan(lost, decoded) if decoded else None
            # In the store's order: what lies side by side there comes up the link in one piece, whoever's it is.
            order = store_order(ranges)
            stored = [ranges[i] for i in order]
            job = DecodeJob(self._engine, plan, decoded, copied, targets, lost_ranks, shards, stored)
            found = job.run()
            self._poison(select(stored, found.committed & ~found.good), targets, arenas)
            left = () if found.good.all() else select(ranges, ~reordered(found.good, ranges, order))
            size = self._engine.layout.slot_bytes
            read = int(found.committed.sum()) * job.inputs * size
            rebuilt, copies = (int(found.good.sum()) * n * size for n in (job.decoded_arenas, job.copied_arenas))
        rest = self._rest(lost_ranks, left, targets, arenas)
        return replace(
            rest,
            slots=num_slots(ranges),
            bytes_rebuilt=rest.bytes_rebuilt + rebuilt,
            bytes_copied=rest.bytes_copied + copies,
            bytes_read=rest.bytes_read + read,
            seconds=time.perf_counter() - began,
        )

    def _rest(
        self,
        lost_ranks: Collection[int],
        ranges: Sequence[SlotRange],
        targets: Collection[int],
        arenas: Sequence[Arena],
    ) -> RebuildReport:
        """What is not committed or did not match, slot by slot over host memory."""
        return rebuild(
            store=self._engine.store,
            code=self._code,
            backend=self._backend,
            arenas=arenas,
            layout=self._engine.layout,
            shard_map=self._engine.shard_map,
            lost_ranks=lost_ranks,
            targets=targets,
            ranges=ranges,
        )

    def _poison(self, ranges: Sequence[SlotRange], targets: Collection[int], arenas: Sequence[Arena]) -> None:
        """No byte that was written and not verified stays."""
        layout = self._engine.layout
        for tile in tiles(ranges, _POISON_SLOTS):
            poison = np.full((num_slots(tile), layout.slot_bytes), POISON, np.uint8)
            for rank in targets:
                arenas[rank].scatter(layout, tile, poison)

    def _shards(
        self, lost_ranks: Collection[int], targets: Collection[int]
    ) -> tuple[frozenset[int], frozenset[int], frozenset[int]]:
        """Shards that nobody holds any more, those of them that targets need, and what targets can copy."""
        where = self._engine.shard_map
        lost = frozenset(where.lost_shards(lost_ranks))
        needed = frozenset(where.shard_of(rank) for rank in targets)
        return lost, needed & lost, needed - lost

    def _plan(self, lost: frozenset[int], wanted: frozenset[int]) -> Plan:
        if (lost, wanted) not in self._plans:
            self._plans[lost, wanted] = self._code.rebuild_plan(lost, wanted)
        return self._plans[lost, wanted]
