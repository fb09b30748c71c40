"""`ghostserve bench strategies`, `sensitivity` and `hybrid`: engines on the CPU, their figures as tables and JSON."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Protocol

from rich.console import Console
from rich.table import Table

from ghostserve.bench.spread import Spread
from ghostserve.engine.config import EngineConfig

if TYPE_CHECKING:
    from ghostserve.bench.hybrid import RefillFigure
    from ghostserve.bench.strategies.measure import StrategyFigures
    from ghostserve.bench.strategies.sensitivity import SensitivityFigure

__all__ = ["BENCHMARKS", "Asked", "hybrid_table", "sensitivity_table", "strategy_tables"]

Say = Callable[[str], None]

_CONTEXTS, _QUICK = (256, 512, 1024, 2048), (64, 128)
_MIB = 1 << 20


class Asked(Protocol):
    """What these benchmarks need of the command line."""

    @property
    def tensor_parallel_size(self) -> int: ...
    @property
    def parity(self) -> str: ...
    @property
    def rounds(self) -> int: ...
    @property
    def quick(self) -> bool: ...
    @property
    def shape(self) -> str | None: ...
    @property
    def contexts(self) -> tuple[int, ...] | None: ...
    @property
    def axes(self) -> tuple[str, ...] | None: ...


def _contexts_of(asked: Asked) -> tuple[int, ...]:
    """Ascending. Raises `ConfigError` for a context that nothing can be protected of."""
    from ghostserve.errors import ConfigError

    found = asked.contexts or (_QUICK if asked.quick else _CONTEXTS)
    if min(found) < 16:
        raise ConfigError(f"a context of {min(found)} tokens is below 16: nothing to measure")
    return tuple(sorted(set(found)))


@contextmanager
def _engine_of(shape: str | None, model: str | None, ranks: int, say: Say) -> Iterator[EngineConfig]:
    """Settings of an engine on the CPU: of random weights of `shape`, which are made here, or of `model`."""
    from ghostserve.bench.shapes import SHAPES, shape_checkpoint
    from ghostserve.bench.workload import bench_config
    from ghostserve.cli.bundled import bundled_model

    if shape is None:
        yield bench_config(model or str(bundled_model()), ranks, "none")
        return
    with shape_checkpoint(shape, say) as folder:
        sizes = SHAPES[shape]
        yield bench_config(str(folder), ranks, "none", kv_cache_memory=sizes.kv_bytes, max_model_len=sizes.context)


def _strategies(console: Console, asked: Asked, model: str | None, say: Say) -> dict[str, Any]:
    """Every way against context length. Raises `ConfigError`, `GhostServeError`."""
    from ghostserve.bench.strategies.measure import Load, bench_strategies
    from ghostserve.bench.strategies.ways import ways_of

    load = Load(contexts=_contexts_of(asked), rounds=1 if asked.quick else asked.rounds)
    ways = ways_of(asked.parity)
    with _engine_of(asked.shape, model, asked.tensor_parallel_size, say) as config:
        found = bench_strategies(config, ways, load, say)
    where = f"{asked.shape or 'model'}, TP {asked.tensor_parallel_size}, one sequence, medians of {load.rounds}"
    for table in strategy_tables(found, where):
        console.print(table)
    return {"kept": [asdict(k) | {"host_share": k.host_share} for k in found.kept],
            "contexts": [asdict(f) for f in found.contexts]}  # fmt: skip


def strategy_tables(found: "StrategyFigures", where: str) -> Iterator[Table]:
    """Against context length, and what is kept."""
    table = Table(
        "tokens", "way", "prefill s", "against none", "checkpoint ms", "kill to next token s", "of it KV back ms",
        "expected ms", "recomputed", title=f"against context length: {where}",
    )  # fmt: skip
    for f in found.contexts:
        table.add_row(
            f"{f.context:,}",
            f.way,
            f"{f.prefill.median:.2f}",
            _ratio(f.prefill_ratio),
            _ms(f.checkpoint),
            f"{f.pause.median:.2f} ({f.pause.low:.2f}..{f.pause.high:.2f})",
            _ms(f.restore),
            "" if f.predicted is None else f"{f.predicted * 1e3:.1f}",
            f"{f.recomputed_slots:.0f}",
        )
    yield table
    kept = Table(
        "way", "host MiB", "of the cache", "disk MiB", "decode tokens/s", "against none",
        title=f"what is kept of {found.kept[0].cache_bytes / _MIB:.0f} MiB of KV cache, and what it costs",
    )  # fmt: skip
    for k in found.kept:
        sizes = f"{k.host_bytes / _MIB:.0f}", f"{k.host_share:.3f}", f"{k.disk_bytes / _MIB:.0f}"
        kept.add_row(k.way, *sizes, f"{k.decode.median:.1f}", _ratio(k.decode_ratio))
    yield kept


def _sensitivity(console: Console, asked: Asked, model: str | None, say: Say) -> dict[str, Any]:
    """What the figures depend on; random weights of the shape "small" unless a model or a shape is asked for."""
    from ghostserve.bench.strategies.measure import Load
    from ghostserve.bench.strategies.sensitivity import AXES, bench_sensitivity, require_axes

    context = _contexts_of(asked)[-1] if asked.contexts or asked.quick else 1024
    load = Load(contexts=(context,), rounds=1 if asked.quick else asked.rounds, streams=4)
    axes = asked.axes or tuple(AXES)
    require_axes(axes)
    shape = asked.shape or (None if model else "small")
    with _engine_of(shape, model, 4 if shape else asked.tensor_parallel_size, say) as config:
        figures = bench_sensitivity(config, load, say, axes)
    where = f"{shape or 'model'}, {context:,} tokens a sequence, medians of {load.rounds}"
    console.print(sensitivity_table(figures, where))
    return {"sensitivity": [asdict(f) for f in figures]}


def sensitivity_table(figures: "Sequence[SensitivityFigure]", where: str) -> Table:
    """A row for each way at each point."""
    table = Table(
        "axis", "value", "ranks", "way", "host of cache", "checkpoint ms", "KV back ms", "kill to next token s",
        "replayed steps", "decode against none", "prefill against none", title=where,
    )  # fmt: skip
    for f in figures:
        table.add_row(
            f.axis,
            f.value,
            str(f.ranks),
            f.kept.way,
            f"{f.kept.host_share:.3f}",
            _ms(f.context.checkpoint),
            _ms(f.context.restore),
            f"{f.context.pause.median:.2f}",
            f"{f.context.replayed_steps:.0f}",
            _ratio(f.kept.decode_ratio),
            _ratio(f.context.prefill_ratio),
        )
    return table


def _hybrid(console: Console, asked: Asked, model: str | None, say: Say) -> dict[str, Any]:
    """Rebuild, recompute and both at once, and what was expected of each."""
    from ghostserve.bench.hybrid import bench_hybrid

    contexts = _contexts_of(asked)
    with _engine_of(asked.shape, model, asked.tensor_parallel_size, say) as config:
        figures = bench_hybrid(config, asked.parity, contexts, rounds=asked.rounds, progress=say)
    where = f"{asked.shape or 'model'}, TP {asked.tensor_parallel_size}, {asked.parity}, medians of {asked.rounds}"
    console.print(hybrid_table(figures, where))
    return {"refills": [asdict(f) for f in figures]}


def hybrid_table(figures: "Sequence[RefillFigure]", where: str) -> Table:
    """By context length, and what hybrid takes of the better of its two parts."""
    table = Table(
        "tokens", "recovery", "refill ms", "expected / measured", "recomputed", "to other bits", "of the better part",
        title=f"refill of one lost rank: {where}",
    )  # fmt: skip
    for context in sorted({f.context for f in figures}):
        found = {f.policy: f for f in figures if f.context == context}
        best = min(found[part].seconds.median for part in ("rebuild", "recompute"))
        for policy, f in found.items():
            table.add_row(
                f"{context:,}",
                policy,
                _ms(f.seconds),
                "" if f.of_measured is None else _ratio(f.of_measured),
                f"{f.recomputed_slots:.0f}",
                f"{f.rejected_slots:.0f}",
                f"{f.seconds.median / best:.2f}" if policy == "hybrid" else "",
            )
    return table


def _ratio(spread: Spread) -> str:
    return f"{spread.median:.3f} ({spread.low:.2f}..{spread.high:.2f})"


def _ms(spread: Spread) -> str:
    return f"{spread.median * 1e3:.1f} ({spread.low * 1e3:.1f}..{spread.high * 1e3:.1f})"


BENCHMARKS: dict[str, Callable[[Console, Asked, str | None, Say], dict[str, Any]]] = {
    "strategies": _strategies,
    "sensitivity": _sensitivity,
    "hybrid": _hybrid,
}
"""Each prints its tables and returns its JSON."""
