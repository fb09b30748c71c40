"""Figures of the strategies as pictures, from the JSON that `ghostserve bench --output` writes."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ghostserve.bench.lines import Panel, draw_panels

__all__ = ["draw_contexts", "draw_hybrid", "draw_sensitivity"]

Figures = Sequence[Mapping[str, Any]]
Points = dict[str, list[tuple[float, float]]]


def draw_contexts(figures: Figures, path: Path) -> None:
    """Checkpoint, KV back, pause and prefill of every way against context length."""

    def panel(title: str, y: str, value: Callable[[Mapping[str, Any]], float], log: bool = True) -> Panel:
        series: Points = {}
        for f in figures:
            if value(f) > 0:  # `none` has no checkpoints
                series.setdefault(f["way"], []).append((f["context"], value(f)))
        return Panel(title, "tokens", y, series, log)

    panels = (
        panel("KV of one lost rank brought back", "ms", lambda f: f["restore"]["median"] * 1e3),
        panel("Kill to next token", "s", lambda f: f["pause"]["median"]),
        panel("Checkpoint of the context", "ms", lambda f: f["checkpoint"]["median"] * 1e3),
        panel("Prefill, against none", "ratio", lambda f: f["prefill_ratio"]["median"], log=False),
    )
    draw_panels(path, "Ways of keeping the KV cache, against context length", panels)


def draw_sensitivity(figures: Figures, path: Path) -> None:
    """Checkpoint and KV back along each axis."""
    panels = []
    for axis in dict.fromkeys(f["axis"] for f in figures):
        of_axis = [f for f in figures if f["axis"] == axis]
        for title, what in (("checkpoint", "checkpoint"), ("KV back", "restore")):
            series: Points = {}
            for f in of_axis:
                value = f["context"][what]["median"] * 1e3
                name = "parity" if f["kept"]["way"].startswith("rs:") else f["kept"]["way"]
                if value > 0:
                    series.setdefault(name, []).append((float(f["value"].removeprefix("rs:")), value))
            panels.append(Panel(f"{_AXES[axis]}: {title}", _AXES[axis], "ms", series))
    draw_panels(path, "What the figures depend on", panels)


_AXES = {
    "code": "K of rs:K",
    "ranks": "ranks (TP)",
    "sequences": "sequences at once",
    "flush": "decode tokens a flush",
    "chunk": "tokens a prefill step",
}


def draw_hybrid(figures: Figures, path: Path) -> None:
    """The refill of each policy, and what the planner expected."""
    measured: Points = {}
    expected: Points = {}
    for f in sorted(figures, key=lambda f: f["context"]):
        measured.setdefault(f["policy"], []).append((f["context"], f["seconds"]["median"] * 1e3))
        if f["of_measured"] is not None:
            expected.setdefault(f["policy"], []).append((f["context"], f["of_measured"]["median"]))
    panels = [Panel("Refill of one lost rank", "tokens", "ms", measured)]
    if expected:
        panels.append(Panel("Expected / measured", "tokens", "ratio", expected, log=False))
    draw_panels(path, "Rebuild, recompute, and both at once", panels)
