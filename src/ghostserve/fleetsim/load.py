"""What comes to each engine: a trace that is repeated, or Poisson arrivals; other for each engine."""

from collections.abc import Callable, Sequence

import numpy as np

from ghostserve.errors import ConfigError
from ghostserve.traces import Arrival, poisson

__all__ = ["poisson_load", "trace_load"]


def poisson_load(
    rate: float, seconds: float, *, prompt: tuple[int, int], output: tuple[int, int], seed: int
) -> Callable[[int], Sequence[Arrival]]:
    """`rate` requests a second to each engine for `seconds`. Raises `ConfigError` as `poisson` does."""
    poisson(rate, 0, prompt=prompt, output=output, seed=seed)  # refuse before anything runs

    def arrivals(engine: int) -> Sequence[Arrival]:
        own = int(np.random.SeedSequence((seed, 2, engine)).generate_state(1)[0])
        count = int(np.random.default_rng(own).poisson(rate * seconds))
        coming = poisson(rate, count, prompt=prompt, output=output, seed=own)
        return [arrival for arrival in coming if arrival.at_seconds < seconds]

    return arrivals


def trace_load(trace: Sequence[Arrival], seconds: float, *, seed: int) -> Callable[[int], Sequence[Arrival]]:
    """The trace again and again for `seconds`, begun at another of its requests on each engine.

    Raises `ConfigError` for a trace in which no time passes.
    """
    if not trace or trace[-1].at_seconds <= 0:
        raise ConfigError(f"a trace of {len(trace)} requests in which no time passes; needed: at least two times")
    span = trace[-1].at_seconds * (1 + 1 / len(trace))  # a mean gap between its end and its beginning

    def arrivals(engine: int) -> Sequence[Arrival]:
        start = int(np.random.default_rng((seed, 3, engine)).integers(len(trace)))
        begin, found = trace[start].at_seconds, []
        for number in range(start, start + len(trace) * (2 + int(seconds / span))):
            a = trace[number % len(trace)]
            at = a.at_seconds + span * (number // len(trace)) - begin
            if at >= seconds:
                break
            found.append(Arrival(at, a.prompt_tokens, a.output_tokens))
        return found

    return arrivals
