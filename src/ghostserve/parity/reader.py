"""Reading shards so that nothing unverified is ever used."""

import logging
from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ghostserve.codes import Backend
from ghostserve.parity.arena import Arena
from ghostserve.parity.geometry import CacheLayout, ShardMap
from ghostserve.parity.ranges import SlotRange, merge, num_slots, select, singles
from ghostserve.parity.store import ParityStore

__all__ = ["Fault", "ShardReader"]

log = logging.getLogger("ghostserve.recovery")

Bytes = NDArray[np.uint8]
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Fault:
    """Slots of a shard whose bytes did not match their recorded checksums.

    `shard`: 0..N-1 data, then parity; `rank`: the rank whose arena held them, None for parity.
    """

    shard: int
    rank: int | None
    slots: SlotRange


class ShardReader:
    """Reads data shards from the arenas of live ranks and parity shards from the store, checks and counts.

    Asked for committed slots only. Every mismatch is noted; it is `corrected` once verified bytes were put in
    its place, else it stays `damaged`.
    """

    def __init__(
        self,
        store: ParityStore,
        backend: Backend,
        arenas: Sequence[Arena],
        layout: CacheLayout,
        shard_map: ShardMap,
        lost_ranks: Collection[int] = (),
    ) -> None:
        """`arenas`: one a rank; those of `lost_ranks` are never read."""
        self._store = store
        self._backend = backend
        self._arenas = arenas
        self._layout = layout
        self._shard_map = shard_map
        self._lost_ranks = frozenset(lost_ranks)
        self._faults: dict[tuple[int, int | None], set[SlotRange]] = defaultdict(set)
        self._repaired: dict[tuple[int, int | None], set[SlotRange]] = defaultdict(set)
        self.bytes_read = 0

    def read(self, shard: int, ranges: Sequence[SlotRange]) -> tuple[Bytes, Mask]:
        """The bytes of `shard`, uint8 (S, slot_bytes), and which slots match their checksums, bool (S,).

        Where several ranks hold the shard, a copy that fails is replaced, here and in its arena, by one that
        passes.
        """
        num_data = self._shard_map.num_shards
        if shard >= num_data:
            try:
                data = self._store.parity_shard(ranges, shard - num_data)
            except OSError as error:  # a store on a disk that can't be read: as good as bytes that are wrong
                log.warning("shard %d of %d slots can't be read from the store: %s", shard, num_slots(ranges), error)
                data = np.zeros((num_slots(ranges), self._layout.slot_bytes), dtype=np.uint8)
                good = np.zeros(len(data), dtype=np.bool_)
            else:
                self.bytes_read += data.nbytes
                good = self.verify(shard, ranges, data)
            self._note(shard, None, select(ranges, ~good))
            return data, good
        data = np.empty((num_slots(ranges), self._layout.slot_bytes), dtype=np.uint8)
        good = np.zeros(len(data), dtype=np.bool_)
        tried: list[tuple[int, Mask]] = []
        for rank in self._shard_map.live_ranks_of(shard, self._lost_ranks):
            if good.all():
                break
            todo = ~good
            asked = select(ranges, todo)
            data[todo] = self._arenas[rank].gather(self._layout, asked)
            self.bytes_read += num_slots(asked) * self._layout.slot_bytes
            good = self.verify(shard, ranges, data)
            self._note(shard, rank, select(ranges, ~good))
            tried.append((rank, ~good))
        for rank, bad in tried:
            self.repair(shard, rank, select(ranges, bad & good), data[bad & good])
        return data, good

    def read_copies(self, shard: int, ranges: Sequence[SlotRange]) -> tuple[Bytes, Mask]:
        """As `read` of a data shard, but all live copies are read; each that fails is replaced by one that passes."""
        data = np.empty((num_slots(ranges), self._layout.slot_bytes), dtype=np.uint8)
        good = np.zeros(len(data), dtype=np.bool_)
        tried: list[tuple[int, Mask]] = []
        for rank in self._shard_map.live_ranks_of(shard, self._lost_ranks):
            copy = self._arenas[rank].gather(self._layout, ranges)
            self.bytes_read += copy.nbytes
            right = self.verify(shard, ranges, copy)
            self._note(shard, rank, select(ranges, ~right))
            tried.append((rank, ~right))
            data[right] = copy[right]
            good |= right
        for rank, bad in tried:
            self.repair(shard, rank, select(ranges, bad & good), data[bad & good])
        return data, good

    def verify(self, shard: int, ranges: Sequence[SlotRange], data: Bytes) -> Mask:
        """Which slots of `data`, uint8 (S, slot_bytes), match the recorded checksums; bool (S,)."""
        good: Mask = self._backend.checksums(data) == self._store.records(ranges)[:, shard]
        return good

    def repair(self, shard: int, rank: int, ranges: Sequence[SlotRange], data: Bytes) -> None:
        """Put verified bytes in the place of those that `rank` held; only noted faults are counted."""
        if ranges:
            self._arenas[rank].scatter(self._layout, ranges, data)
            self._repaired[shard, rank].update(singles(ranges))

    @property
    def corrected(self) -> tuple[Fault, ...]:
        """Mismatches that were found and repaired."""
        return self._report(repaired=True)

    @property
    def damaged(self) -> tuple[Fault, ...]:
        """Mismatches that were found and left as they are."""
        return self._report(repaired=False)

    def _note(self, shard: int, rank: int | None, ranges: Sequence[SlotRange]) -> None:
        if ranges:
            self._faults[shard, rank].update(singles(ranges))

    def _report(self, *, repaired: bool) -> tuple[Fault, ...]:
        faults: list[Fault] = []
        for (shard, rank), slots in self._faults.items():
            done = self._repaired.get((shard, rank), set())
            kept = slots & done if repaired else slots - done
            faults += (Fault(shard, rank, r) for r in merge(sorted(kept, key=_place)))
        return tuple(faults)


def _place(slot: SlotRange) -> tuple[int, int, int, int]:
    return slot.block, slot.generation, slot.parity_block, slot.start
