"""The figures as tables and as JSON."""

import statistics
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rich.table import Table

from ghostserve.bench.vllm.pause import PauseFigure
from ghostserve.bench.vllm.throughput import SAME, STOCK, ThroughputFigure

__all__ = ["as_json", "pause_tables", "throughput_table"]


def throughput_table(figures: Sequence[ThroughputFigure], parity: str, ranks: int) -> Table:
    """A row for each round of each work, and its medians."""
    table = Table(
        *("work", "round", f"plug-in, {parity}", "stock, same collectives", "stock"),
        *("plug-in / same", "plug-in / stock", "stock / same"),
        title=f"throughput, TP {ranks}, tokens/s (prompts counted); aim of the ratios: 0.97",
    )
    for f in figures:
        work = f"{f.work.name}: {f.work.streams} x {f.work.prompt}+{f.work.tokens}"
        pairs = ((parity, SAME), (parity, STOCK), (STOCK, SAME))
        speeds = [f.speeds(name) for name in (parity, SAME, STOCK)]
        ratios = [f.ratios(*pair) for pair in pairs]
        for number in range(len(speeds[0])):
            table.add_row(
                work if number == 0 else "",
                str(number + 1),
                *(f"{column[number]:.1f}" for column in speeds),
                *(f"{column[number]:.3f}" for column in ratios),
            )
        table.add_row(
            "",
            "median",
            *(f"{statistics.median(column):.1f}" for column in speeds),
            *(f"{f.ratio(*pair):.3f}" for pair in pairs),
            style="bold",
            end_section=True,
        )
    return table


def pause_tables(figures: Sequence[PauseFigure], what: str) -> list[Table]:
    """The ways side by side, then where the time of each recovery goes."""
    table = Table(
        *("way", "kill to next token, all streams (s)", "each kill", "against restart"),
        title=f"pause, {what}; aim with a standby: 4 s",
    )
    medians = [statistics.median(f.seconds) for f in figures]
    for f, median in zip(figures, medians, strict=True):
        each = ", ".join(f"{seconds:.2f}" for seconds in f.seconds)
        table.add_row(f.way, f"{median:.2f}", each, f"{medians[-1] / median:.1f}x faster" if len(figures) > 1 else "")
    return [table, *(_phases(f) for f in figures if f.phases)]


def _phases(figure: PauseFigure) -> Table:
    """A column for each kill."""
    kills = [f"kill {number}, s" for number in range(1, len(figure.phases) + 1)]
    table = Table("where the time goes", *kills, title=figure.way)
    for name, _ in figure.phases[0]:  # their order can be another with each kill
        table.add_row(name, *(f"{dict(phases).get(name, 0.0):.3f}" for phases in figure.phases))
    return table


def as_json(throughput: Sequence[ThroughputFigure], pause: Sequence[PauseFigure], parity: str) -> dict[str, Any]:
    """All that was measured, with the medians."""
    return {
        "parity": parity,
        "throughput": [
            {
                "work": asdict(f.work),
                "seconds": dict(f.seconds),
                "ratio against the same collectives": f.ratio(parity, SAME),
                "ratio against stock": f.ratio(parity, STOCK),
                "agreed with stock": f.agreed,
            }
            for f in throughput
        ],
        "pause": [
            {
                "way": f.way,
                "seconds": f.seconds,
                "median": statistics.median(f.seconds),
                "phases": [dict(phases) for phases in f.phases],
            }
            for f in pause
        ],
    }
