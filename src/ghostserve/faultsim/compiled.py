"""The fake model's loops, compiled: a simulated run is a few thousand of them over a few words each."""

import numba
import numpy as np
from numpy.typing import NDArray

__all__ = ["chunk_loop", "digest_loop", "mix_loop"]

Words = NDArray[np.uint64]
Index = NDArray[np.int64]


@numba.njit(inline="always")  # type: ignore[untyped-decorator]
def _mix(word: np.uint64) -> np.uint64:
    word = word + np.uint64(0x9E3779B97F4A7C15)
    word = (word ^ (word >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    word = (word ^ (word >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return word ^ (word >> np.uint64(31))


@numba.njit(nogil=True, cache=True)  # type: ignore[untyped-decorator]
def mix_loop(words: Words) -> None:
    """splitmix64's bijection, in place."""
    for i in range(words.shape[0]):
        words[i] = _mix(words[i])


@numba.njit(nogil=True, cache=True)  # type: ignore[untyped-decorator]
def digest_loop(cache: Words, blocks: Index, slots: int, weights: Words, rank: int) -> np.uint64:
    """Of a rank's words (words, blocks, block size) in the first `slots` slots of `blocks`; `weights` (slots, ranks,
    words)."""
    total, size = np.uint64(0), cache.shape[2]
    for position in range(slots):
        block, slot = blocks[position // size], position % size
        for word in range(cache.shape[0]):
            total += cache[word, block, slot] * weights[position, rank, word]
    return total


@numba.njit(nogil=True, cache=True)  # type: ignore[untyped-decorator]
def chunk_loop(
    tokens: Words, start: int, digest: np.uint64, lanes: Words, shards: Index, weights: Words, kv: Words
) -> np.uint64:
    """Fill `kv` (tokens, ranks, words) from `start` on, and give the digest behind it; `lanes` (shards, words)."""
    for index in range(tokens.shape[0]):
        root = _mix(digest ^ _mix(tokens[index] + np.uint64(1)))
        for rank in range(kv.shape[1]):
            for word in range(kv.shape[2]):
                kv[index, rank, word] = _mix(lanes[shards[rank], word] ^ root)
                digest += kv[index, rank, word] * weights[start + index, rank, word]
    return digest
