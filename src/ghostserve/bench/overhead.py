"""What protection costs while nothing fails: tokens a second with parity against without, side by side in one run."""

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass

from ghostserve.bench.workload import bench_config, run_streams
from ghostserve.engine.engine import Engine
from ghostserve.errors import GhostServeError

__all__ = ["OverheadFigure", "bench_overhead"]

_STREAMS, _PROMPT, _TOKENS = 6, 64, 24


@dataclass(frozen=True)
class OverheadFigure:
    """Tokens a second of each round, and the median of the rounds' ratios (protected / unprotected)."""

    parity: str
    protected: tuple[float, ...]
    unprotected: tuple[float, ...]

    @property
    def ratio(self) -> float:
        return statistics.median(a / b for a, b in zip(self.protected, self.unprotected, strict=True))


def bench_overhead(
    model: str, tensor_parallel_size: int, parity: str, *, rounds: int, progress: Callable[[str], None]
) -> OverheadFigure:
    """Both engines live at once and take turns, so that a drifting machine hits both alike.

    Every round checks that the two give the same tokens. Raises `GhostServeError` where they don't.
    """
    speeds: dict[str, list[float]] = {parity: [], "none": []}
    with ExitStack() as stack:
        engines = {}
        for code in speeds:
            progress(f"starting {tensor_parallel_size} ranks with parity {code}")
            config = bench_config(model, tensor_parallel_size, code, standbys=0)
            engines[code] = stack.enter_context(Engine(config))
        for number in range(-1, rounds):  # round -1 warms up
            progress(f"round {number + 1} of {rounds}" if number >= 0 else "warm-up")
            tokens = {}
            for code in _alternate(tuple(speeds), number):
                began = time.monotonic()
                streams = run_streams(
                    engines[code], count=_STREAMS, prompt_tokens=_PROMPT, max_tokens=_TOKENS, name=f"round{number}"
                )
                seconds = time.monotonic() - began
                tokens[code] = [stream.tokens for stream in streams]
                if number >= 0:
                    speeds[code].append(_STREAMS * _TOKENS / seconds)
            if tokens[parity] != tokens["none"]:
                raise GhostServeError(f"round {number}: tokens with {parity} differ from those without parity")
    return OverheadFigure(parity, tuple(speeds[parity]), tuple(speeds["none"]))


def _alternate(codes: tuple[str, ...], number: int) -> Iterator[str]:
    return iter(codes if number % 2 else reversed(codes))
