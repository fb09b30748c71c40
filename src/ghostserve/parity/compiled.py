"""The loops that numba compiles; importing this imports numba."""

import numba
import numpy as np
from numpy.typing import NDArray

__all__ = ["gather_loop", "scatter_loop", "seal_loop"]

Bytes = NDArray[np.uint8]
Index = NDArray[np.int64]


@numba.njit(inline="always")  # type: ignore[untyped-decorator]
def _mix(state: np.uint64) -> np.uint64:
    """splitmix64's finalizer behind its increment: a bijection of 64-bit words; arithmetic wraps."""
    state = state + np.uint64(0x9E3779B97F4A7C15)
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))


@numba.njit(nogil=True, cache=True)  # type: ignore[untyped-decorator]
def seal_loop(words: NDArray[np.uint64], places: NDArray[np.uint64], seals: NDArray[np.uint64]) -> None:
    for i in range(places.shape[0]):
        state = _mix(places[i] + np.uint64(0x9E3779B97F4A7C15))
        for column in range(words.shape[1]):
            state = _mix(state ^ words[i, column])
        seals[i] = max(state, np.uint64(1))


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
