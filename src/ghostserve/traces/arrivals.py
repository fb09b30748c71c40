"""One request's arrival, and Poisson arrivals from a seed."""

import math

import msgspec
import numpy as np

from ghostserve.errors import ConfigError

__all__ = ["Arrival", "poisson"]


class Arrival(msgspec.Struct, frozen=True):
    """A request that comes `at_seconds` after the first one; both lengths are at least 1 token."""

    at_seconds: float
    prompt_tokens: int
    output_tokens: int


def poisson(rate: float, count: int, *, prompt: tuple[int, int], output: tuple[int, int], seed: int) -> list[Arrival]:
    """`count` arrivals at `rate` a second with exponential gaps; the same seed gives the same list.

    Lengths are drawn evenly from `prompt` and `output`, each (least, most) in tokens, both included.
    Raises `ConfigError` for a rate that is not above 0, a negative count or seed, or a range that is empty or below 1.
    """
    if not (math.isfinite(rate) and rate > 0):
        raise ConfigError(f"rate must be a number above 0 (requests a second), not {rate}")
    for name, value in (("count", count), ("seed", seed)):
        if value < 0:
            raise ConfigError(f"{name} must be at least 0, not {value}")
    for name, (least, most) in (("prompt", prompt), ("output", output)):
        if not 1 <= least <= most:
            raise ConfigError(f"{name} must be (least, most) tokens with 1 <= least <= most, not ({least}, {most})")
    # A generator each: a longer range of prompts then leaves the times and the outputs as they were.
    gaps, prompts, outputs = (np.random.default_rng((seed, part)) for part in range(3))
    times = np.cumsum(gaps.exponential(1 / rate, count))
    lengths = prompts.integers(*prompt, size=count, endpoint=True), outputs.integers(*output, size=count, endpoint=True)
    return [Arrival(float(at), int(p), int(o)) for at, p, o in zip(times, *lengths, strict=True)]
