"""The loops that numba compiles; importing this imports numba."""

import numba
import numpy as np
from numpy.typing import NDArray

__all__ = [
    "committed_loop",
    "extremes_loop",
    "gather_loop",
    "index_loop",
    "matches_loop",
    "measure_loop",
    "runs_loop",
    "scatter_loop",
    "seal_loop",
    "spread_loop",
]

Bytes = NDArray[np.uint8]
Words = NDArray[np.uint64]
Index = NDArray[np.int64]


@numba.njit(inline="always")  # type: ignore[untyped-decorator]
def _mix(state: np.uint64) -> np.uint64:
    """splitmix64's finalizer behind its increment: a bijection of 64-bit words; arithmetic wraps."""
    state = state + np.uint64(0x9E3779B97F4A7C15)
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))


@numba.njit(nogil=True, cache=True)  # type: ignore[untyped-decorator]
def seal_loop(words: Words, places: Words, seals: Words) -> None:
    for i in range(places.shape[0]):
        state = _mix(places[i] + np.uint64(0x9E3779B97F4A7C15))
        for column in range(words.shape[1]):
            state = _mix(state ^ words[i, column])
        seals[i] = max(state, np.uint64(1))


@numba.njit(nogil=True, cache=True)  # type: ignore[untyped-decorator]
def committed_loop(records: Words, rows: Index, identities: Words, committed: NDArray[np.bool_]) -> None:
    # Every word is read once: a writer beside this can make a record look torn, never mix two looks at it.
    last = records.shape[1] - 1
    for i in range(rows.shape[0]):
        record = records[rows[i]]
        state = _mix(np.uint64(rows[i]) + np.uint64(0x9E3779B97F4A7C15))
        word = np.uint64(0)
        for column in range(last):
            word = record[column]
            state = _mix(state ^ word)
        committed[i] = word == identities[i] and max(state, np.uint64(1)) == record[last]


@numba.njit(nogil=True, cache=True)  # type: ignore[untyped-decorator]
def matches_loop(records: Words, rows: Index, shards: Index, sums: Words, matches: NDArray[np.bool_]) -> None:
    for i in range(rows.shape[0]):
        same = True
        for column in range(shards.shape[0]):
            same &= records[rows[i], shards[column]] == sums[i, column]
        matches[i] = same


@numba.njit(nogil=True, cache=True)  # type: ignore[untyped-decorator]
def measure_loop(ranges: Index, num_parity_blocks: int, block_size: int) -> tuple[int, int, bool]:
    """How many slots, the first range that is no part of such a store (or -1), and do the rows ascend?

    A block or generation of over 32 bits is outside, too.
    """
    slots, outside, last, ascend = 0, -1, -1, True
    for r in range(ranges.shape[0]):
        first, start, stop = ranges[r, 2] * block_size, ranges[r, 3], ranges[r, 4]
        inside = 0 <= ranges[r, 2] < num_parity_blocks and 0 <= start <= stop <= block_size
        for column in range(2):
            inside &= ranges[r, column] >= 0 and ranges[r, column] >> 32 == 0
        if not inside and outside < 0:
            outside = r
        ascend &= first + start > last
        last = first + stop - 1
        slots += stop - start
    return slots, outside, ascend


@numba.njit(nogil=True, cache=True)  # type: ignore[untyped-decorator]
def spread_loop(ranges: Index, block_size: int, table: Index) -> None:
    """Fill `table`, int64 (4, S): block, slot, row and identity of every slot."""
    i = 0
    for r in range(ranges.shape[0]):
        word = ranges[r, 1] << 32 | ranges[r, 0]
        first = ranges[r, 2] * block_size
        for at in range(ranges[r, 3], ranges[r, 4]):
            table[0, i] = ranges[r, 0]
            table[1, i] = at
            table[2, i] = first + at
            table[3, i] = word
            i += 1


@numba.njit(nogil=True, cache=True)  # type: ignore[untyped-decorator]
def index_loop(block: Index, slot: Index, row: Index, index: NDArray[np.int32]) -> None:
    """Fill the first rows of `index`, int32 (at least S, 3)."""
    for i in range(block.shape[0]):
        index[i, 0] = block[i]
        index[i, 1] = slot[i]
        index[i, 2] = row[i]


@numba.njit(nogil=True, cache=True)  # type: ignore[untyped-decorator]
def gather_loop(arena: Bytes, segments: Index, slots: Index, shards: Bytes) -> None:
    # Unsigned indices spare the compiled loops Python's wrap-around of negative ones: ten times faster.
    # Segments outside, slots inside: neighbouring slots of a block are neighbours in memory.
    column = np.uint64(0)
    for g in range(segments.shape[0]):
        nbytes = np.uint64(segments[g, 3])
        for i in range(slots.shape[0]):
            first = np.uint64(segments[g, 0] + slots[i, 0] * segments[g, 1] + slots[i, 1] * segments[g, 2])
            shard = shards[i]
            for k in range(nbytes):
                shard[column + np.uint64(k)] = arena[first + np.uint64(k)]
        column += nbytes


@numba.njit(nogil=True, cache=True)  # type: ignore[untyped-decorator]
def scatter_loop(arena: Bytes, segments: Index, slots: Index, shards: Bytes) -> None:
    column = np.uint64(0)
    for g in range(segments.shape[0]):
        nbytes = np.uint64(segments[g, 3])
        for i in range(slots.shape[0]):
            first = np.uint64(segments[g, 0] + slots[i, 0] * segments[g, 1] + slots[i, 1] * segments[g, 2])
            shard = shards[i]
            for k in range(nbytes):
                arena[first + np.uint64(k)] = shard[column + np.uint64(k)]
        column += nbytes


@numba.njit(nogil=True, cache=True)  # type: ignore[untyped-decorator]
def runs_loop(rows: Index, runs: Index) -> int:
    """Writes (place of the first, its row, how many) of every run of rows that count on by one; how many there are."""
    found = -1
    for i in range(rows.shape[0]):
        if i and rows[i] == rows[i - 1] + 1:
            runs[found, 2] += 1
        else:
            found += 1
            runs[found, 0], runs[found, 1], runs[found, 2] = i, rows[i], 1
    return found + 1


@numba.njit(nogil=True, cache=True)  # type: ignore[untyped-decorator]
def extremes_loop(numbers: Index) -> tuple[int, int]:
    """The least and the greatest of at least one number."""
    least = greatest = numbers[0]
    for number in numbers:
        least, greatest = min(least, number), max(greatest, number)
    return least, greatest
