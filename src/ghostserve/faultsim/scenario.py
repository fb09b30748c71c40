"""The undisturbed part of a simulated run: shapes, settings and what clients ask for. A pure function of the seed."""

import random
from dataclasses import dataclass

from ghostserve.engine.config import EngineConfig
from ghostserve.engine.modelspec import ModelSpec
from ghostserve.parity.geometry import StoreGeometry

__all__ = ["Ask", "Scenario", "make_scenario"]

_BLOCK = 4
_VOCABULARY = 1 << 31
_CODES = {"xor": 1, "rs:1": 1, "rs:2": 2, "rdp": 2, "rs:3": 3}
LONGEST = 40 + 20
"""Tokens of the longest request."""


@dataclass(frozen=True)
class Ask:
    """One client: at `at` seconds it sends `prompt`; it hangs up after `patience` tokens, or never (None)."""

    at: float
    prompt: tuple[int, ...]
    max_tokens: int
    seed: int
    patience: int | None


@dataclass(frozen=True)
class Scenario:
    """`corruption`: bits may flip, and then a recompute is no fault. `short_store`: not every block has parity."""

    config: EngineConfig
    spec: ModelSpec
    losses_covered: int
    asks: tuple[Ask, ...]
    corruption: bool
    short_store: bool

    @property
    def ranks(self) -> int:
        return self.spec.tensor_parallel_size


def make_scenario(seed: int) -> Scenario:
    rng = random.Random(f"scenario {seed}")
    scrubs = random.Random(f"scrubbing {seed}").random() < 0.5
    ranks, shards = rng.choice(((2, 2), (3, 3), (3, 3), (4, 4), (4, 2), (5, 5)))
    code = rng.choice(list(_CODES))
    blocks = rng.choice((16, 20, 32, 48))
    spec = ModelSpec(
        path="simulated", model_type="simulated", tensor_parallel_size=ranks, dtype="float32",
        num_layers=rng.choice((1, 2, 4)), num_heads=ranks, num_kv_heads=shards, head_dim=2, vocab_size=_VOCABULARY,
        max_model_len=LONGEST, eos_token_ids=(), block_size=_BLOCK, num_blocks=blocks,
    )  # fmt: skip
    short = rng.random() < 0.25
    parity_memory = None
    if short:
        slot_bytes = spec.cache_layout.slot_bytes
        parity_memory = StoreGeometry(shards, _CODES[code], rng.randint(2, blocks - 2), _BLOCK, slot_bytes).total_bytes
    config = EngineConfig(
        recovery="rebuild",  # simulated workers do not recompute
        model="simulated", tensor_parallel_size=ranks, parity=code, block_size=_BLOCK, parity_memory=parity_memory,
        flush_tokens=rng.choice((1, 1, 2, 4)), max_unprotected_tokens=rng.choice((4, 64)),
        encoder=rng.choice(("round_robin", "striped")), max_num_seqs=rng.choice((2, 4, 8)),
        max_num_batched_tokens=rng.choice((8, 16, 64)), standbys=rng.choice((0, 1, 1, 2)),
        step_deadline=1.5, phase_deadline=5.0, max_recovery_attempts=40, scrub_rate=1 << 40 if scrubs else 0,
    )  # fmt: skip
    asks = tuple(_ask(rng) for _ in range(rng.randint(2, 6)))
    return Scenario(config, spec, _CODES[code], asks, rng.random() < 0.3, short)


def _ask(rng: random.Random) -> Ask:
    prompt = tuple(rng.randrange(_VOCABULARY) for _ in range(rng.choice((rng.randint(1, 12), rng.randint(1, 40)))))
    patience = rng.randint(0, 8) if rng.random() < 0.1 else None
    return Ask(rng.uniform(0.3, 1.5), prompt, rng.randint(1, 20), rng.randrange(1 << 30), patience)
