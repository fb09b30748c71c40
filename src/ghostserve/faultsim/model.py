"""A model whose every token hangs on every byte of KV: one wrong bit anywhere gives another token.

A slot's KV is `words` uint64 words a rank, one for each layer's K and V. The sum over a context of every word times
an odd weight of its own (modulo 2^64) is its digest; a token, and the KV of the next slot, are hashes of that.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ghostserve.engine.messages import Sampled, SequencePart
from ghostserve.engine.modelspec import ModelSpec
from ghostserve.faultsim.compiled import chunk_loop, digest_loop, mix_loop

__all__ = ["FakeModel"]

Words = NDArray[np.uint64]
_MASK = (1 << 64) - 1


class FakeModel:
    """Knows shapes, holds no state: `caches` are the ranks' arenas, uint8 (layout.total_bytes,), as they are now."""

    def __init__(self, spec: ModelSpec) -> None:
        self._size, self._blocks = spec.block_size, spec.num_blocks
        self._vocabulary = spec.vocab_size
        self._words = 2 * spec.num_layers
        shard_map = spec.shard_map
        self._shards = np.array([shard_map.shard_of(r) for r in range(spec.tensor_parallel_size)], dtype=np.int64)
        odd = np.arange(spec.max_model_len * len(self._shards) * self._words, dtype=np.uint64)
        mix_loop(odd)
        odd |= np.uint64(1)
        self._weights = odd.reshape(spec.max_model_len, len(self._shards), self._words)
        lanes = np.arange(shard_map.num_shards * self._words, dtype=np.uint64) + np.uint64(1 << 40)
        mix_loop(lanes)
        self._lanes = lanes.reshape(shard_map.num_shards, self._words)

    def chunk(self, part: SequencePart, caches: Sequence[NDArray[np.uint8]]) -> Words:
        """The KV that `part` writes, uint64 (tokens, ranks, words), from the KV before it as the caches hold it."""
        return self._chunk(part.token_ids, part.start, self.digest(part.blocks, part.start, caches))[0]

    def write(self, part: SequencePart, rank: int, kv: Words, cache: NDArray[np.uint8]) -> None:
        """Put `rank`'s share of what `chunk` gave into its cache."""
        positions = np.arange(part.start, part.start + len(part.token_ids))
        self._view(cache)[:, np.array(part.blocks)[positions // self._size], positions % self._size] = kv[:, rank].T

    def sample(self, part: SequencePart, caches: Sequence[NDArray[np.uint8]]) -> Sampled | None:
        """The next token, read from all bytes of the context's KV on all ranks; None for a chunk that draws none."""
        if part.draw is None:
            return None
        digest = self.digest(part.blocks, part.start + len(part.token_ids), caches)
        return Sampled(part.request_id, self._token(digest, part.draw.seed, part.draw.counter), None, ())

    def digest(self, blocks: Sequence[int], slots: int, caches: Sequence[NDArray[np.uint8]]) -> int:
        """Of the first `slots` slots of `blocks`, on all ranks."""
        where, total = np.array(blocks, dtype=np.int64), 0
        for rank, cache in enumerate(caches):
            total += int(digest_loop(self._view(cache), where, slots, self._weights, rank))
        return total & _MASK

    def expected(self, prompt: Sequence[int], count: int, seed: int) -> list[int]:
        """The tokens of an undisturbed run, computed without any cache."""
        tokens, digest, done = list(prompt), 0, 0
        for counter in range(count):
            _, digest = self._chunk(tokens[done:], done, digest)
            done = len(tokens)
            tokens.append(self._token(digest, seed, counter))
        return tokens[len(prompt) :]

    def _chunk(self, token_ids: Sequence[int], start: int, digest: int) -> tuple[Words, int]:
        """The KV of `token_ids` behind a context with this digest, and the digest with them."""
        kv = np.empty((len(token_ids), len(self._shards), self._words), dtype=np.uint64)
        tokens = np.array(token_ids, dtype=np.uint64)
        last = chunk_loop(tokens, start, np.uint64(digest), self._lanes, self._shards, self._weights, kv)
        return kv, int(last)

    def _token(self, digest: int, seed: int, counter: int) -> int:
        return _mix(digest ^ _mix(seed << 8 | counter)) % self._vocabulary

    def _view(self, cache: NDArray[np.uint8]) -> Words:
        size = self._words * self._blocks * self._size * 8
        return cache[:size].view(np.uint64).reshape(self._words, self._blocks, self._size)


def _mix(word: int) -> int:
    word = (word + 0x9E3779B97F4A7C15) & _MASK
    word = ((word ^ (word >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    word = ((word ^ (word >> 27)) * 0x94D049BB133111EB) & _MASK
    return word ^ (word >> 31)
