"""A slot's record: what makes parity trustworthy.

Words of a record (uint64): the checksums of the N data shards, of the K parity shards, the identity, the
commit word. The commit word is a seal over all others and over the record's own place, so a record that is
torn, flipped, moved or never written does not match it: its slot is then simply not committed.
"""

import numpy as np
from numpy.typing import NDArray

__all__ = ["IDENTITY", "SEAL", "are_committed", "have_checksums", "identity", "seal", "warm_up"]

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
    from ghostserve.parity.compiled import seal_loop  # brings numba, which takes half a second: only when used

    seals = np.empty(len(places), np.uint64)
    seal_loop(words, places, seals)
    return seals


def are_committed(
    records: NDArray[np.uint64], rows: NDArray[np.int64], identities: NDArray[np.uint64]
) -> NDArray[np.bool_]:
    """Which of the records in rows `rows`, int64 (S,), are whole and of this identity, uint64 (S,); bool (S,)."""
    from ghostserve.parity.compiled import committed_loop

    committed = np.empty(len(rows), np.bool_)
    committed_loop(records, rows, identities, committed)
    return committed


def have_checksums(
    records: NDArray[np.uint64], rows: NDArray[np.int64], shards: NDArray[np.int64], sums: NDArray[np.uint64]
) -> NDArray[np.bool_]:
    """Which records in `rows`, int64 (S,), have for `shards`, int64 (P,), just `sums`, uint64 (S, P); bool (S,)."""
    from ghostserve.parity.compiled import matches_loop

    matches = np.empty(len(rows), np.bool_)
    matches_loop(records, rows, shards, sums, matches)
    return matches


def warm_up() -> None:
    """Compile now (or load from the cache), not in the first flush. Contiguous words and views are two kernels."""
    words = np.zeros((1, 3), np.uint64)
    row = np.zeros(1, np.int64)
    seal(words[:, :2], seal(words, np.zeros(1, np.uint64)))
    are_committed(words, row, words[:, 0].copy())
    have_checksums(words, row, row, words[:, :1].copy())
