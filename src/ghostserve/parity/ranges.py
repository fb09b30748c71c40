"""Which slots: the currency in which flushes, records and rebuilds are asked for."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, pairwise, repeat

import msgspec
import numpy as np
from numpy.typing import NDArray

__all__ = [
    "SlotRange",
    "merge",
    "num_slots",
    "reordered",
    "select",
    "singles",
    "slot_numbers",
    "split",
    "store_order",
    "tiles",
    "without",
]


class SlotRange(msgspec.Struct, frozen=True, array_like=True):
    """Slots `start..stop-1` of one block, in one generation, with the parity block that covers them.

    `block` numbers the cache, `parity_block` the parity store: they differ when the host budget holds fewer
    blocks than the cache. An array of five ints on the wire.
    """

    block: int
    generation: int
    parity_block: int
    start: int
    stop: int

    @property
    def num_slots(self) -> int:
        return self.stop - self.start

    def part(self, start: int, stop: int) -> "SlotRange":
        """Slots `start..stop-1` of the same block."""
        return SlotRange(self.block, self.generation, self.parity_block, start, stop)

    def follows(self, other: "SlotRange") -> bool:
        """True if this range begins in the same block where `other` ends."""
        return (self.block, self.generation, self.parity_block, self.start) == (
            other.block,
            other.generation,
            other.parity_block,
            other.stop,
        )


def num_slots(ranges: Iterable[SlotRange]) -> int:
    """Slots in all ranges together."""
    return sum([r.stop - r.start for r in ranges])  # asked for in every flush: spare it the property and a generator


def slot_numbers(ranges: Sequence[SlotRange]) -> NDArray[np.int64]:
    """The slot within its block of every slot, int64 (S,), in order."""
    counts = np.array([r.num_slots for r in ranges], dtype=np.int64)
    starts = np.array([r.start for r in ranges], dtype=np.int64)
    # Counting on from each range's start: a running number, set back by what came before the range.
    return np.arange(counts.sum()) + np.repeat(starts - (counts.cumsum() - counts), counts)


def singles(ranges: Iterable[SlotRange]) -> Iterator[SlotRange]:
    """Every slot as a range of its own, in order."""
    return (r.part(slot, slot + 1) for r in ranges for slot in range(r.start, r.stop))


def merge(ranges: Iterable[SlotRange]) -> tuple[SlotRange, ...]:
    """The same slots in the same order, neighbours that follow each other made one range."""
    merged: list[SlotRange] = []
    for r in ranges:
        if merged and r.follows(merged[-1]):
            merged[-1] = r.part(merged[-1].start, r.stop)
        elif r.num_slots > 0:
            merged.append(r)
    return tuple(merged)


def tiles(ranges: Iterable[SlotRange], max_slots: int, first: Sequence[int] = ()) -> Iterator[tuple[SlotRange, ...]]:
    """Cut `ranges` into runs of exactly `max_slots` slots, the first ones of as many as `first` says, the last shorter.

    Order is kept. A run is cut when it is asked for.
    """
    tile: list[SlotRange] = []
    sizes = chain(first, repeat(max_slots))
    room = next(sizes)
    for r in ranges:
        start, stop = r.start, r.stop
        while stop - start > room:
            tile.append(r.part(start, start + room))
            start += room
            yield tuple(tile)
            tile, room = [], next(sizes)
        if start < stop:
            tile.append(r if start == r.start else r.part(start, stop))
            room -= stop - start
    if tile:
        yield tuple(tile)


def split(ranges: Sequence[SlotRange], parts: int) -> list[tuple[SlotRange, ...]]:
    """Cut `ranges` into at most `parts` runs, none of them empty, whose sizes differ by at most one slot."""
    total = num_slots(ranges)
    slots = list(singles(ranges))
    bounds = [total * i // parts for i in range(parts + 1)]
    return [merge(slots[a:b]) for a, b in pairwise(bounds) if b > a]


def store_order(ranges: Sequence[SlotRange]) -> list[int]:
    """The indices of `ranges` in the order of their parity in the store."""
    # A recovery waits for this, with thousands of ranges: Python only reads their fields, NumPy makes keys and sorts.
    blocks = np.array([r.parity_block for r in ranges], dtype=np.int64)
    keys = blocks << 32 | np.array([r.start for r in ranges], dtype=np.int64)
    order: list[int] = keys.argsort(kind="stable").tolist()
    return order


def reordered(mask: NDArray[np.bool_], ranges: Sequence[SlotRange], order: Sequence[int]) -> NDArray[np.bool_]:
    """`mask`, one entry a slot of `ranges` taken in `order`, with its entries in the order of `ranges`."""
    ends = np.cumsum([ranges[i].num_slots for i in order])
    parts = dict(zip(order, np.split(mask, ends[:-1]), strict=True))
    return np.concatenate([parts[i] for i in range(len(ranges))])


def select(ranges: Sequence[SlotRange], mask: NDArray[np.bool_]) -> tuple[SlotRange, ...]:
    """The slots of `ranges` where `mask` (bool, one entry a slot in the ranges' order) is true."""
    if mask.all():
        return tuple(ranges)
    if not mask.any():
        return ()
    return merge(slot for slot, wanted in zip(singles(ranges), mask, strict=True) if wanted)


def without(ranges: Iterable[SlotRange], gone: Iterable[SlotRange]) -> tuple[SlotRange, ...]:
    """The slots of `ranges` that are not in `gone`, in order; blocks are told apart by number and generation."""
    holes: dict[tuple[int, int], list[tuple[int, int]]] = defaultdict(list)
    for r in gone:
        holes[r.block, r.generation].append((r.start, r.stop))
    left: list[SlotRange] = []
    for r in ranges:
        at = r.start
        for start, stop in sorted(holes.get((r.block, r.generation), ())):
            if at < min(start, r.stop):
                left.append(r.part(at, min(start, r.stop)))
            at = max(at, stop)
        if at < r.stop:
            left.append(r.part(at, r.stop))
    return tuple(left)
