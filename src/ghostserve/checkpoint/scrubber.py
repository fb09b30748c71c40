"""Looking for bytes that rotted since they were committed, beside an engine that writes and frees slots meanwhile.

A reading proves nothing by itself: its slot may just be written again, or be another request's by now. So a mismatch
counts only if it is there again, the same, and if nothing that could explain it has happened in the meantime.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ghostserve.codes import Backend
from ghostserve.parity.arena import Arena
from ghostserve.parity.geometry import CacheLayout, ShardMap
from ghostserve.parity.ranges import SlotRange, num_slots, select, singles, tiles
from ghostserve.parity.reader import Fault
from ghostserve.parity.store import ParityStore

__all__ = ["ScrubReport", "Scrubber"]

# As a flush: the shards of a piece stay in the processor's cache. And a flush or a fence waits for one piece at most.
PIECE_SLOTS = 64
PIECE_BYTES = 2 << 20


@dataclass(frozen=True)
class ScrubReport:
    """`slots` that were committed and checked, `bytes_read` of all their shards, `faults` slot by slot, `withdrawn`:
    mismatches that something else explains, `uncommitted`: slots that have no whole record, and were passed over."""

    slots: int
    bytes_read: int
    faults: tuple[Fault, ...]
    withdrawn: int
    uncommitted: tuple[SlotRange, ...] = ()

    def __add__(self, other: "ScrubReport") -> "ScrubReport":
        return ScrubReport(
            self.slots + other.slots,
            self.bytes_read + other.bytes_read,
            self.faults + other.faults,
            self.withdrawn + other.withdrawn,
            self.uncommitted + other.uncommitted,
        )


class Scrubber:
    """Reads only. `held(slot)` must say, after the reading, whether the slot was its request's all the time.

    A slot of a generation is: it was live then and is live now (a block that is freed comes back under another one).
    """

    def __init__(
        self,
        *,
        store: ParityStore,
        backend: Backend,
        arenas: Sequence[Arena],
        layout: CacheLayout,
        shard_map: ShardMap,
        held: Callable[[SlotRange], bool],
    ) -> None:
        """`arenas`: one a rank; all of them are read."""
        self._store, self._backend, self._arenas = store, backend, arenas
        self._layout, self._shard_map, self._held = layout, shard_map, held

    def check(self, ranges: Sequence[SlotRange]) -> ScrubReport:
        """Verify every shard of the committed slots of `ranges`, on every rank that holds it; see `walk`."""
        return sum(self.walk(ranges), start=ScrubReport(0, 0, (), 0))

    def walk(self, ranges: Sequence[SlotRange]) -> Iterator[ScrubReport]:
        """The same in pieces of at most `PIECE_SLOTS` slots and about `PIECE_BYTES` bytes, a report each.

        What is not committed is passed over. Raises `ValueError` for slots that do not exist and what the store's
        medium raises.
        """
        places = self._places()
        slots = min(PIECE_SLOTS, max(1, PIECE_BYTES // (len(places) * self._layout.slot_bytes)))
        room = np.empty((slots, self._layout.slot_bytes), dtype=np.uint8)
        for piece in tiles(ranges, slots):
            yield self._verify(piece, places, room)

    def _verify(
        self, piece: Sequence[SlotRange], places: Sequence[tuple[int, int | None]], room: NDArray[np.uint8]
    ) -> ScrubReport:
        epoch = self._store.epoch
        there = self._store.committed_slots(piece)
        committed, absent = select(piece, there), select(piece, ~there)
        if not committed:
            return ScrubReport(0, 0, (), 0, absent)
        faults: list[Fault] = []
        withdrawn, count = 0, num_slots(committed)
        records = self._store.records(committed).copy()
        for shard, rank in places:
            sums = self._sums(shard, rank, committed, room[:count])
            wrong = sums != records[:, shard]
            for index, slot in enumerate(singles(committed)) if wrong.any() else ():
                if not wrong[index]:
                    continue
                if self._stands(epoch, slot, records[index], shard, rank, sums[index]):
                    faults.append(Fault(shard, rank, slot))
                else:
                    withdrawn += 1
        read = count * len(places) * self._layout.slot_bytes
        return ScrubReport(count, read, tuple(faults), withdrawn, absent)

    def _places(self) -> list[tuple[int, int | None]]:
        data = [(self._shard_map.shard_of(rank), rank) for rank in range(self._shard_map.world_size)]
        first = self._shard_map.num_shards
        return [*data, *((first + index, None) for index in range(self._store.geometry.num_parity))]

    def _sums(
        self, shard: int, rank: int | None, ranges: Sequence[SlotRange], room: NDArray[np.uint8] | None = None
    ) -> NDArray[np.uint64]:
        if rank is None:
            return self._backend.checksums(self._store.parity_shard(ranges, shard - self._shard_map.num_shards))
        return self._backend.checksums(self._arenas[rank].gather(self._layout, ranges, room))

    def _stands(
        self, epoch: int, slot: SlotRange, record: NDArray[np.uint64], shard: int, rank: int | None, found: np.uint64
    ) -> bool:
        """The same wrong bytes again, and only then whether the slot, its record and the epoch are still what they
        were: whatever had begun to write would by now have taken one of them away."""
        again = self._sums(shard, rank, [slot])[0]
        same_record = np.array_equal(self._store.records([slot])[0], record)
        committed = bool(self._store.committed_slots([slot]).all())
        return bool(again == found and same_record and committed and self._store.epoch == epoch and self._held(slot))
