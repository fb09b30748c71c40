"""The fake model's compiled loops against its formulas, written out with Python's integers."""

import numpy as np
import pytest

from ghostserve.engine.messages import Draw, SequencePart
from ghostserve.faultsim.model import FakeModel
from ghostserve.faultsim.scenario import make_scenario

MASK = (1 << 64) - 1


def mix(word):
    word = (word + 0x9E3779B97F4A7C15) & MASK
    word = ((word ^ (word >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    word = ((word ^ (word >> 27)) * 0x94D049BB133111EB) & MASK
    return word ^ (word >> 31)


class Formulas:
    """KV as a dictionary: (position, rank, word) -> number."""

    def __init__(self, spec):
        self.ranks, self.words = spec.tensor_parallel_size, 2 * spec.num_layers
        self.shards = [spec.shard_map.shard_of(rank) for rank in range(self.ranks)]
        self.vocabulary = spec.vocab_size

    def digest(self, kv):
        total = 0
        for (position, rank, word), value in kv.items():
            total += value * (mix((position * self.ranks + rank) * self.words + word) | 1)
        return total & MASK

    def extend(self, kv, position, token):
        root = mix(self.digest(kv) ^ mix(token + 1))
        for rank in range(self.ranks):
            for word in range(self.words):
                lane = mix(self.shards[rank] * self.words + word + (1 << 40))
                kv[position, rank, word] = mix(lane ^ root)

    def tokens(self, prompt, count, seed):
        kv, tokens = {}, list(prompt)
        for position in range(len(prompt) + count - 1):
            self.extend(kv, position, tokens[position])
            drawn = position - len(prompt) + 1
            if drawn >= 0:
                tokens.append(mix(self.digest(kv) ^ mix(seed << 8 | drawn)) % self.vocabulary)
        return tokens[len(prompt) :]


@pytest.mark.parametrize("seed", range(6))
def test_the_loops_compute_the_formulas(seed):
    spec = make_scenario(seed).spec
    model, formulas = FakeModel(spec), Formulas(spec)
    prompt, drawn = tuple(range(3, 3 + spec.block_size + 2)), 4
    tokens = formulas.tokens(prompt, drawn, seed)
    assert model.expected(prompt, drawn, seed) == tokens
    # Over the caches, poisoned, in blocks out of order: a prefill, then decodes.
    caches = [np.full(spec.cache_layout.total_bytes, 0xA5, dtype=np.uint8) for _ in range(spec.tensor_parallel_size)]
    blocks = tuple(reversed(range(-(-(len(prompt) + drawn) // spec.block_size))))
    given, start = prompt, 0
    for counter in range(drawn):
        part = SequencePart("r", given, start, blocks, Draw(0.0, 1.0, 0, seed, counter, None))
        kv = model.chunk(part, caches)
        for rank, cache in enumerate(caches):
            model.write(part, rank, kv, cache)
        assert model.sample(part, caches).token_id == tokens[counter]
        start, given = start + len(given), (tokens[counter],)


def test_every_bit_of_the_context_counts_and_no_other():
    spec = make_scenario(0).spec
    model = FakeModel(spec)
    caches = [np.zeros(spec.cache_layout.total_bytes, dtype=np.uint8) for _ in range(spec.tensor_parallel_size)]
    blocks, slots = (1, 0), spec.block_size + 1
    before = model.digest(blocks, slots, caches)
    inside = outside = 0
    for cache in caches:
        for byte in range(cache.size):
            cache[byte] ^= 0x10
            changed = model.digest(blocks, slots, caches) != before
            cache[byte] ^= 0x10
            inside, outside = inside + changed, outside + (not changed)
    assert inside == len(caches) * 2 * spec.num_layers * slots * 8
    assert outside == sum(cache.size for cache in caches) - inside > 0
