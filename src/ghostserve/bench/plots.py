"""Benchmarks' figures as pictures, from the JSON that `ghostserve bench --output` writes."""

from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ghostserve.bench.lines import Panel, draw_panels
from ghostserve.bench.strategies.pictures import draw_contexts, draw_hybrid, draw_sensitivity
from ghostserve.errors import ConfigError

__all__ = ["draw", "require_matplotlib"]

_INK, _SOFT, _AIM = "#2a6f97", "#a9c9dd", "#c1121f"


def require_matplotlib() -> None:
    """Raise `ConfigError` where matplotlib is missing, before anything is measured for a picture."""
    if find_spec("matplotlib") is None:
        raise ConfigError("plots need matplotlib, which is not installed: pip install 'ghostserve[bench]'")


def draw(results: Mapping[str, Any], folder: Path) -> list[Path]:
    """Draw what `results` has figures for; the files written, PNG. Makes the folder. Raises `ConfigError`."""
    require_matplotlib()
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name, (benchmark, kind, picture) in _PICTURES.items():
        figures = results.get(benchmark, {}).get(kind)
        if figures:
            path = folder / f"{name}.png"
            picture(figures, path)
            written.append(path)
    return written


def _kernels(figures: Sequence[Mapping[str, Any]], path: Path) -> None:
    shown = [f for f in figures if f["programs"] is None]
    labels = list(dict.fromkeys(f"{f['shape']}, {f['code']}, {f['case']}" for f in shown))
    by_label = {(f"{f['shape']}, {f['code']}, {f['case']}", f["checksums"]): f["of_ceiling"] for f in shown}
    series = {
        "with checksums": [by_label.get((label, True), 0.0) for label in labels],
        "without": [by_label.get((label, False), 0.0) for label in labels],
    }
    _bars(path, "Traffic of the kernels, as a part of a plain copy's", labels, series, aim=0.95, limit=1.0)


def _checkpoint(figures: Sequence[Mapping[str, Any]], path: Path) -> None:
    labels = [f"{f['code']}, {f['way']}" for f in figures]
    title = f"Checkpoint of {figures[0]['tokens']} tokens: times faster than copying all shards out"
    _bars(path, title, labels, {"faster": [f["faster"] for f in figures]}, aims=[f["aim"] for f in figures])


def _beside(figures: Sequence[Mapping[str, Any]], path: Path) -> None:
    labels = [f"{f['code']}, {f['way']}" for f in figures]
    lost = [f["lost_seconds"] * 1e3 for f in figures]
    _bars(path, "Milliseconds of matrix products lost to one checkpoint", labels, {"ms": lost})


def _rebuild(figures: Sequence[Mapping[str, Any]], path: Path) -> None:
    labels = [f"{f['code']}, lost {', '.join(map(str, f['lost']))}, {f['order']}" for f in figures]
    title = "Rebuild: parity read a second, as a part of a plain copy to the device"
    _bars(path, title, labels, {"of copy": [f["of_ceiling"] for f in figures]}, aim=0.9, limit=1.0)


def _overhead(figures: Sequence[Mapping[str, Any]], path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 0.5 * len(figures) + 1.5), layout="constrained")
    axes = figure.subplots()
    rows = range(len(figures))
    middle = [f["ratio"]["median"] for f in figures]
    below = [f["ratio"]["median"] - f["ratio"]["low"] for f in figures]
    above = [f["ratio"]["high"] - f["ratio"]["median"] for f in figures]
    axes.errorbar(middle, rows, xerr=[below, above], fmt="o", color=_INK, ecolor=_SOFT, elinewidth=4)
    axes.axvline(1.0, color="black", linewidth=0.8)
    axes.axvline(1.01, color=_AIM, linewidth=0.8, linestyle="--")
    labels = [f"{f['model']}, {f['work']}\n{f['parity']}" for f in figures]
    axes.set_yticks(list(rows), labels, fontsize=8)
    axes.invert_yaxis()
    figure.suptitle("Time with parity / time without: median and range; dashed: the aim", fontsize=10)
    figure.savefig(path, dpi=120)


def _contexts(figures: Sequence[Mapping[str, Any]], path: Path) -> None:
    panels = []
    for shape in dict.fromkeys(f["shape"] for f in figures):
        of_shape = [f for f in figures if f["shape"] == shape]
        one_code = [f for f in of_shape if f["code"] == of_shape[0]["code"]]  # what no code is in: once is enough
        codes = dict.fromkeys(f["code"] for f in of_shape)

        def points(chosen: Sequence[Mapping[str, Any]], what: str) -> list[tuple[float, float]]:
            return [(f["tokens"], f[what]["median"] * 1e3) for f in chosen]

        saved = {f"parity, {code}": points([f for f in of_shape if f["code"] == code], "checkpoint") for code in codes}
        back = {f"parity, {code}": points([f for f in of_shape if f["code"] == code], "rebuild") for code in codes}
        saved["copies of all shards"] = points(one_code, "copy_all")
        back["copies of all shards"] = points(one_code, "copy_back")
        back["recompute"] = points(one_code, "recompute")
        panels.append(Panel(f"{shape}: checkpoint", "tokens", "ms", saved))
        panels.append(Panel(f"{shape}: one rank brought back", "tokens", "ms", back))
    draw_panels(path, "Checkpoint and recovery against context length, one link", panels)


def _bars(
    path: Path,
    title: str,
    labels: Sequence[str],
    series: Mapping[str, Sequence[float]],
    *,
    aim: float | None = None,
    aims: Sequence[float] = (),
    limit: float | None = None,
) -> None:
    """Horizontal bars, a group a label; `aim` (for all) or `aims` (one a label) dashed, `limit` a thin line."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 0.22 * len(labels) * len(series) + 1.5), layout="constrained")
    axes = figure.subplots()
    height = 0.8 / len(series)
    for number, (name, values) in enumerate(series.items()):
        places = [at + (number - (len(series) - 1) / 2) * height for at in range(len(labels))]
        bars = axes.barh(places, values, height, color=(_INK, _SOFT)[number % 2], label=name)
        axes.bar_label(bars, fmt="%.2f", padding=2, fontsize=7)
    if aim is not None:
        axes.axvline(aim, color=_AIM, linewidth=0.8, linestyle="--")
    for at, value in enumerate(aims):
        axes.plot([value, value], [at - 0.4, at + 0.4], color=_AIM, linewidth=1.2, linestyle="--")
    if limit is not None:
        axes.axvline(limit, color="black", linewidth=0.8)
    axes.set_yticks(range(len(labels)), labels, fontsize=8)
    axes.invert_yaxis()
    figure.suptitle(title, fontsize=10)
    if len(series) > 1:
        figure.legend(fontsize=8, loc="outside lower center", ncols=len(series))
    figure.savefig(path, dpi=120)


_PICTURES: dict[str, tuple[str, str, Callable[[Sequence[Mapping[str, Any]], Path], None]]] = {
    "kernels": ("kernels", "kernels", _kernels),
    "checkpoint": ("checkpoint", "checkpoint", _checkpoint),
    "checkpoint-beside-matmuls": ("checkpoint", "checkpoint_beside_matmuls", _beside),
    "rebuild": ("rebuild", "rebuild", _rebuild),
    "overhead": ("overhead", "overhead", _overhead),
    "contexts": ("contexts", "contexts", _contexts),
    "strategies": ("strategies", "contexts", draw_contexts),
    "sensitivity": ("sensitivity", "sensitivity", draw_sensitivity),
    "hybrid": ("hybrid", "refills", draw_hybrid),
}
