"""A slot's record: what makes parity trustworthy.

Words of a record (uint64): the checksums of the N data shards, of the K parity shards, the identity, the
commit word. The commit word is a seal over all others and over the record's own place, so a record that is
torn, flipped, moved or never written does not match it: its slot is then simply not committed.
"""

import numba
import numpy as np
from numpy.typing import NDArray

__all__ = ["IDENTITY", "SEAL", "identity", "seal", "warm_up"]

IDENTITY = -2
SEAL = -1

_LIMIT = 1 << 32


def identity(block: int, generation: int) -> int:
    """The word that ties a record to one use of one cache block; `ValueError` if a part exceeds 32 bits."""
    if not (0 <= block < _LIMIT and 0 <= generation < _LIMIT):
        raise ValueError(f"block {block}, generation {generation}: both must be in 0..{_LIMIT - 1}")
    return generation << 32 | block


def seal(words: NDArray[np.uint64], places: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The commit words, uint64 (S,), never 0, for the other words of records, uint64 (S, N+K+1).

    `places`, uint64 (S,), says where the records stand: a place is `parity_block * block_size + slot`. Each
    word is folded in by a bijection, so a change confined to one word always changes the seal. Releases the GIL:
    flushes seal beside the model's own thread.
    """
    seals = np.empty(len(places), np.uint64)
    _seal(words, places, seals)
    return seals


def warm_up() -> None:
    """Compile now (or load from the cache), not in the first flush. Contiguous words and views are two kernels."""
    words = np.zeros((1, 3), np.uint64)
    seal(words[:, :2], seal(words, np.zeros(1, np.uint64)))


@numba.njit(inline="always")  # type: ignore[untyped-decorator]
def _mix(state: np.uint64) -> np.uint64:
    """splitmix64's finalizer behind its increment: a bijection of 64-bit words; arithmetic wraps."""
    state = state + np.uint64(0x9E3779B97F4A7C15)
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))


@numba.njit(nogil=True, cache=True)  # type: ignore[untyped-decorator]
def _seal(words: NDArray[np.uint64], places: NDArray[np.uint64], seals: NDArray[np.uint64]) -> None:
    for i in range(places.shape[0]):
        state = _mix(places[i] + np.uint64(0x9E3779B97F4A7C15))
        for column in range(words.shape[1]):
            state = _mix(state ^ words[i, column])
        seals[i] = max(state, np.uint64(1))
