"""Refilling the arenas of lost ranks: copied from a replica where one lives, else computed from parity.

Nothing unverified is used or written: every shard that is read and every shard that is computed must match
the checksum that was recorded when the slot was encoded. Of the slots asked for, every live rank's bytes are
verified: also those copies of replicated shards that nothing has to be computed from.
"""

import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ghostserve.codes import Backend, Code, Plan
from ghostserve.parity.arena import Arena
from ghostserve.parity.fit import check_fit
from ghostserve.parity.geometry import CacheLayout, ShardMap
from ghostserve.parity.ranges import SlotRange, merge, num_slots, select, singles, tiles
from ghostserve.parity.reader import Fault, ShardReader
from ghostserve.parity.store import ParityStore

__all__ = ["Fault", "RebuildReport", "rebuild"]

# Large enough to keep the kernels busy, small enough that a tile's shards stay in the processor's cache.
TILE_SLOTS = 64

Bytes = NDArray[np.uint8]


@dataclass(frozen=True)
class RebuildReport:
    """What a rebuild did. Bytes count what was written to (or, `bytes_read`, read from) arenas and store.

    `failed` are the slots, of `slots` asked for, that some target did not get back, or of which no live copy of a
    survivors' shard is right; `reasons` says why, one entry a range. `corrected` are survivors' slots that did not
    match their checksums and were put right; `damaged` those, and parity, that were left as they are.
    """

    slots: int
    bytes_rebuilt: int
    bytes_copied: int
    bytes_read: int
    failed: tuple[SlotRange, ...]
    reasons: tuple[str, ...]
    corrected: tuple[Fault, ...]
    damaged: tuple[Fault, ...]
    seconds: float


def rebuild(
    *,
    store: ParityStore,
    code: Code,
    backend: Backend,
    arenas: Sequence[Arena],
    layout: CacheLayout,
    shard_map: ShardMap,
    lost_ranks: Collection[int],
    ranges: Sequence[SlotRange],
    targets: Collection[int] | None = None,
) -> RebuildReport:
    """Refill the slots of `ranges` in the arenas of `targets` (default: of all `lost_ranks`).

    `lost_ranks`: every rank whose arena's content is lost; none of them is read. `arenas`: one a
    rank, writable for targets and, so that they can be corrected, for survivors. A
    survivor's or parity shard that fails its checksum is one more erasure of that slot, as long as the code
    has parity for it.

    Slots that can't be rebuilt are reported, not raised, and left untouched. Raises `StoreMismatchError` if
    the parts do not belong together and `ValueError` for targets that are not lost or slots that do not
    exist.
    """
    began = time.perf_counter()
    check_fit(store.geometry, code, layout, shard_map, arenas)
    asked = frozenset(lost_ranks if targets is None else targets)
    if not asked <= frozenset(lost_ranks):
        raise ValueError(f"targets {sorted(asked)} must be among the lost ranks {sorted(lost_ranks)}")
    reader = ShardReader(store, backend, arenas, layout, shard_map, lost_ranks)
    job = _Rebuild(store, code, backend, arenas, layout, shard_map, frozenset(lost_ranks), asked, reader)
    for tile in tiles(ranges, TILE_SLOTS):
        job.refill(tile)
    failed = job.failures()
    return RebuildReport(
        slots=num_slots(ranges),
        bytes_rebuilt=job.bytes_rebuilt,
        bytes_copied=job.bytes_copied,
        bytes_read=reader.bytes_read,
        failed=tuple(r for r, _ in failed),
        reasons=tuple(reason for _, reason in failed),
        corrected=reader.corrected,
        damaged=reader.damaged,
        seconds=time.perf_counter() - began,
    )


class _Rebuild:
    """One rebuild under way."""

    def __init__(
        self,
        store: ParityStore,
        code: Code,
        backend: Backend,
        arenas: Sequence[Arena],
        layout: CacheLayout,
        shard_map: ShardMap,
        lost_ranks: frozenset[int],
        targets: frozenset[int],
        reader: ShardReader,
    ) -> None:
        self.store, self.code, self.backend, self.reader = store, code, backend, reader
        self.arenas, self.layout, self.shard_map = arenas, layout, shard_map
        self.lost_ranks, self.targets = lost_ranks, targets
        self.lost = frozenset(shard_map.lost_shards(lost_ranks))
        needed = frozenset(shard_map.shard_of(rank) for rank in targets)
        self.to_copy, self.to_decode = needed - self.lost, needed & self.lost
        # Decoding reads each survivor where every rank has a shard of its own; of replicas it reads one, or none.
        held = frozenset(range(shard_map.num_shards)) - self.lost
        self.to_check = sorted(held) if shard_map.copies > 1 else []
        self.bytes_rebuilt = self.bytes_copied = 0
        self._reasons: dict[SlotRange, str] = {}
        # Backends keep what they compile with the plan object: ask the code for each plan once.
        self._plans: dict[tuple[frozenset[int], frozenset[int]], Plan] = {}

    def refill(self, tile: Sequence[SlotRange]) -> None:
        """Bring every target's bytes of these slots back, or note why not."""
        committed = self.store.committed_slots(tile)
        self._fail(select(tile, ~committed), "no committed parity record of this generation")
        ranges = select(tile, committed)
        if not ranges:
            return
        for shard in self.to_check:
            data, good = self.reader.read_copies(shard, ranges)
            if shard in self.to_copy:
                self.bytes_copied += self._put(shard, select(ranges, good), data[good])
            self._decode(select(ranges, ~good), self.lost | {shard}, frozenset({shard}))
        if self.to_decode:
            self._decode(ranges, self.lost, self.to_decode)

    def failures(self) -> list[tuple[SlotRange, str]]:
        """Failed slots in the order they were met, neighbours with the same reason made one range."""
        runs: list[tuple[SlotRange, str]] = []
        for slot, reason in self._reasons.items():
            if runs and runs[-1][1] == reason and slot.follows(runs[-1][0]):
                runs[-1] = merge((runs[-1][0], slot))[0], reason
            else:
                runs.append((slot, reason))
        return runs

    def _decode(self, ranges: Sequence[SlotRange], erased: frozenset[int], wanted: frozenset[int]) -> None:
        """Compute the `wanted` data shards, and erased ones of survivors, from shards not in `erased`."""
        if not ranges:
            return
        if not self.code.rebuilds(erased):
            self._fail(ranges, f"shards {sorted(erased)} are lost or damaged, {self.code} rebuilds {self.code.k}")
            return
        survivors = {s for s in erased - self.lost if s < self.code.n}
        outcome = wanted | survivors
        plan = self._plan(erased, outcome)
        reads = [self.reader.read(shard, ranges) for shard in plan.inputs]
        good = np.stack([mask for _, mask in reads], axis=1)
        if not good.all():
            # Each slot goes on with its own erasures: slots that share them are decoded together.
            for pattern in np.unique(good, axis=0):
                bad = {shard for shard, fine in zip(plan.inputs, pattern, strict=True) if not fine}
                alike = select(ranges, (good == pattern).all(axis=1))
                self._decode(alike, erased | bad, wanted)
            return
        shape = (len(good), self.layout.slot_bytes)
        outputs = [np.empty(shape, dtype=np.uint8) for _ in plan.outputs]
        self.backend.run(plan, [data for data, _ in reads], outputs)
        results = list(zip(sorted(outcome), outputs, strict=False))  # scratch shards follow the outcome
        right = np.all([self.reader.verify(shard, ranges, data) for shard, data in results], axis=0)
        self._fail(select(ranges, ~right), "the rebuilt bytes do not match the recorded checksums")
        kept = select(ranges, right)
        for shard, data in results:
            self.bytes_rebuilt += self._put(shard, kept, data[right])
            for rank in self.shard_map.live_ranks_of(shard, self.lost_ranks):
                self.reader.repair(shard, rank, kept, data[right])

    def _put(self, shard: int, ranges: Sequence[SlotRange], data: Bytes) -> int:
        """Write verified bytes to every target that holds `shard`; the bytes written."""
        holders = [rank for rank in self.shard_map.ranks_of(shard) if rank in self.targets]
        for rank in holders:
            self.arenas[rank].scatter(self.layout, ranges, data)
        return data.nbytes * len(holders)

    def _plan(self, erased: frozenset[int], wanted: frozenset[int]) -> Plan:
        if (erased, wanted) not in self._plans:
            self._plans[erased, wanted] = self.code.rebuild_plan(erased, wanted)
        return self._plans[erased, wanted]

    def _fail(self, ranges: Sequence[SlotRange], reason: str) -> None:
        for slot in singles(ranges):
            self._reasons.setdefault(slot, reason)
