"""The slot checksum: a multilinear hash with 32-bit weights, summed to 64 bits.

After Lemire & Kaser, "Strongly universal string hashing is fast", 2014.

A slot's bytes are cut into little-endian 32-bit words w_i (the last one padded with zeros), and

    checksum = (SEED + sum of m_i * w_i) mod 2^64,    m_i = (splitmix64(i) >> 32) | 1

A change within one word is detected with certainty: it moves the sum by m_i * (w_i - w_i'), which is not 0 and too
small to wrap around. Of the weights of a changed word at most one value hides any other change: it is missed with a
probability of 2^-31 or less. A word costs one multiply-add on a GPU; weights of 64 bits cost three and do not
lower that bound. SEED keeps the checksum of zeros from being 0. The sum has no order, so backends may add the
words up as they like. The length is not hashed: all slots of a store have the same.
"""

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

__all__ = ["SEED", "checksum_reference", "weights"]

SEED = int.from_bytes(b"GhostSrv", "big")
WORD_BYTES = 4
_MASK = (1 << 64) - 1


def _splitmix64(seed: int) -> int:
    """The first output of the SplitMix64 generator seeded with `seed` (Steele, Lea & Flood, 2014)."""
    z = (seed + 0x9E3779B97F4A7C15) & _MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
    return z ^ (z >> 31)


@lru_cache(maxsize=32)
def weights(slot_bytes: int) -> NDArray[np.uint64]:
    """The weights m_i, odd and below 2^32, for slots of `slot_bytes` bytes: uint64 (words,), read-only."""
    words = -(-slot_bytes // WORD_BYTES)
    result = np.array([_splitmix64(i) >> 32 | 1 for i in range(words)], dtype=np.uint64)
    result.flags.writeable = False
    return result


def checksum_reference(data: NDArray[np.uint8]) -> NDArray[np.uint64]:
    """The checksums of uint8 (S, B) slots: uint64 (S,). Slow and readable, the oracle of the backends."""
    m = [int(x) for x in weights(data.shape[1])]
    sums = []
    for slot in data:
        raw = slot.tobytes()
        words = [int.from_bytes(raw[i : i + WORD_BYTES], "little") for i in range(0, len(raw), WORD_BYTES)]
        sums.append((SEED + sum(a * b for a, b in zip(m, words, strict=True))) & _MASK)
    return np.array(sums, dtype=np.uint64)
