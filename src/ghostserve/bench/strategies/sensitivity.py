"""What changes the figures: the code's K and N, the number of ranks, sequences at once, and how much a flush takes."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import msgspec

from ghostserve.bench.strategies.measure import ContextFigure, KeptFigure, Load, bench_strategies
from ghostserve.bench.strategies.ways import Way
from ghostserve.engine.config import EngineConfig
from ghostserve.errors import ConfigError

__all__ = ["AXES", "Point", "SensitivityFigure", "bench_sensitivity", "require_axes"]


@dataclass(frozen=True)
class Point:
    """One setting of one axis; everything else is as it was. `settings`: of `EngineConfig`."""

    value: str
    parity: str = "rs:1"
    sequences: int = 1
    settings: dict[str, Any] = field(default_factory=dict)


AXES: dict[str, tuple[Point, ...]] = {
    "code": (Point("rs:1"), Point("rs:2", parity="rs:2"), Point("rs:3", parity="rs:3")),
    "ranks": tuple(Point(str(n), settings={"tensor_parallel_size": n}) for n in (2, 4, 8)),
    "sequences": tuple(Point(str(n), sequences=n) for n in (1, 4, 8)),
    "flush": tuple(Point(str(n), settings={"flush_tokens": n}) for n in (1, 8, 32)),
    "chunk": tuple(Point(str(n), settings={"max_num_batched_tokens": n}) for n in (64, 256, 1024)),
}
"""code: of N ranks; flush: decode tokens between two flushes; chunk: tokens of a prefill step, flushed together."""


@dataclass(frozen=True)
class SensitivityFigure:
    """One way at one point."""

    axis: str
    value: str
    ranks: int
    kept: KeptFigure
    context: ContextFigure


def require_axes(axes: Sequence[str]) -> None:
    """Raise `ConfigError` for one that does not exist."""
    unknown = [axis for axis in axes if axis not in AXES]
    if unknown:
        raise ConfigError(f"axis {unknown[0]!r} is unknown; allowed: {', '.join(AXES)}")


def bench_sensitivity(
    config: EngineConfig, load: Load, say: Callable[[str], None], axes: Sequence[str] = tuple(AXES)
) -> list[SensitivityFigure]:
    """`none`, `replicate-host` and parity at every point of `axes`, each point with engines of its own.

    `load` has one context. Raises `ConfigError` for an unknown axis, `GhostServeError` as `bench_strategies`.
    """
    require_axes(axes)
    figures = []
    for axis in axes:
        for point in AXES[axis]:

            def said(text: str, where: str = f"{axis} {point.value}") -> None:
                say(f"{where}: {text}")

            chosen = msgspec.structs.replace(config, **point.settings)
            ways = (Way("replicate-host", "replicate-host"), Way(point.parity, "parity", point.parity))
            found = bench_strategies(chosen, ways, replace(load, sequences=point.sequences), said)
            figures += [
                SensitivityFigure(axis, point.value, chosen.tensor_parallel_size, kept, context)
                for kept, context in zip(found.kept, found.contexts, strict=True)
            ]
    return figures
