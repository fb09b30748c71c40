"""The figures as tables and as JSON."""

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from rich.table import Table

from ghostserve.bench.online.bench import Online
from ghostserve.bench.online.figures import Figure, Spread
from ghostserve.bench.online.strategies import BASE

__all__ = ["as_json", "described", "tables"]


def described(online: Online) -> str:
    """What was sent and what counts as good, in a line."""
    prompts, outputs = ([getattr(a, name) for a in online.arrivals] for name in ("prompt_tokens", "output_tokens"))
    return (
        f"{len(online.arrivals)} requests, {online.rate:.3g} a second ({online.gauged.capacity:.3g} can be served)"
        f", prompts of {min(prompts)} to {max(prompts)} tokens, {min(outputs)} to {max(outputs)} drawn;"
        f" SLO: first token in {online.slo.ttft:.2f} s, further ones every {online.slo.per_token:.3f} s"
    )


def tables(online: Online) -> Iterator[Table]:
    """Latencies, what failures cost, and how much lower than `none`: a table each."""
    yield _latencies(online)
    yield _costs(online)
    if any(figure.strategy == BASE for figure in online.figures):
        yield _against(online)


def as_json(online: Online) -> dict[str, Any]:
    """All of it, with every request's latency."""
    return {
        "rate": online.rate,
        "capacity": online.gauged.capacity,
        "slo": asdict(online.slo),
        "arrivals": [(a.at_seconds, a.prompt_tokens, a.output_tokens) for a in online.arrivals],
        "engine": {
            name: getattr(online.config, name)
            for name in ("tensor_parallel_size", "parity", "device", "dtype", "max_model_len", "kv_cache_memory",
                         "max_num_seqs", "max_num_batched_tokens", "standbys")
        },
        "cases": [asdict(case) for case in online.cases],
        "compared_tokens": online.compared,
        "figures": [asdict(figure) for figure in online.figures],
        "refused": online.refused,
        "failed": online.failed,
    }  # fmt: skip


def _latencies(online: Online) -> Table:
    columns = ("failures", "strategy", "latency P50", "P99", "max", "TTFT P50", "P99", "per token P50", "P99")
    table = Table(*columns, title="what clients see, seconds")
    for figure in _by_case(online):
        cells = (*_three(figure.latency), *_two(figure.ttft), *_two(figure.per_token, 3))
        table.add_row(figure.case, figure.strategy, *cells)
    return table


def _costs(online: Online) -> Table:
    columns = (
        "failures", "strategy", "kills", "requests struck", "recomputed", "pause mean", "max", "time to recovery",
        "met SLO", "goodput /s", "effective time",
    )  # fmt: skip
    table = Table(*columns, title="what failures cost, seconds")
    for f in _by_case(online):
        pause = ("", "") if f.pause is None else (f"{f.pause.mean:.2f}", f"{f.pause.most:.2f}")
        recovery = "" if f.recovery is None else f"{f.recovery:.2f}"
        good = f"{f.good / f.requests:.0%}"
        row = (f.case, f.strategy, str(f.kills), str(f.struck), str(f.recomputed), *pause, recovery)
        table.add_row(*row, good, f"{f.goodput:.3f}", f"{f.effective:.3f}")
    return table


def _against(online: Online) -> Table:
    columns = ("failures", "strategy", "latency P50", "P99", "effective time")
    table = Table(*columns, title=f"times better than {BASE}")
    base = {figure.case: figure for figure in online.figures if figure.strategy == BASE}
    for figure in _by_case(online):
        other = base.get(figure.case)
        if other is None or figure is other:
            continue
        ratios = (other.latency.p50 / figure.latency.p50, other.latency.p99 / figure.latency.p99)
        effective = figure.effective / other.effective
        table.add_row(figure.case, figure.strategy, *(f"{ratio:.2f}" for ratio in ratios), f"{effective:.2f}")
    return table


def _by_case(online: Online) -> Iterator[Figure]:
    for case in online.cases:
        yield from (figure for figure in online.figures if figure.case == case.label)


def _three(spread: Spread) -> tuple[str, str, str]:
    return f"{spread.p50:.2f}", f"{spread.p99:.2f}", f"{spread.most:.2f}"


def _two(spread: Spread, digits: int = 2) -> tuple[str, str]:
    return f"{spread.p50:.{digits}f}", f"{spread.p99:.{digits}f}"
