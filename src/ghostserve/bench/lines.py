"""Pictures of figures against something that grows: a line for each way, panels side by side."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["Panel", "draw_panels"]

_COLOURS = ("#2a6f97", "#c1121f", "#6a994e", "#bc6c25", "#7b2cbf", "#555555")
_MARKS = "osD^vP"


@dataclass(frozen=True)
class Panel:
    """`series`: name -> points (x, y), ascending in x. Both axes are logarithmic where `log` says so."""

    title: str
    x: str
    y: str
    series: Mapping[str, Sequence[tuple[float, float]]]
    log: bool = True


def draw_panels(path: Path, title: str, panels: Sequence[Panel], columns: int = 2) -> None:
    """Write a PNG. A name has the same colour in every panel; needs matplotlib (`plots.require_matplotlib`)."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, NullFormatter

    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(4.6 * columns, 3.2 * rows + 0.8), layout="constrained")
    names = list(dict.fromkeys(name for panel in panels for name in panel.series))
    style = {name: (_COLOURS[i % len(_COLOURS)], _MARKS[i % len(_MARKS)]) for i, name in enumerate(names)}
    drawn: dict[str, Any] = {}
    places = figure.subplots(rows, columns, squeeze=False)
    for axes in places.flat[len(panels) :]:
        axes.set_axis_off()
    for axes, panel in zip(places.flat, panels, strict=False):
        for name, points in panel.series.items():
            colour, mark = style[name]
            (line,) = axes.plot(*zip(*points, strict=True), marker=mark, markersize=4, color=colour, linewidth=1.4)
            drawn.setdefault(name, line)
        if panel.log:
            axes.set_xscale("log", base=2)
            axes.set_yscale("log")
            axes.xaxis.set_minor_formatter(NullFormatter())
        else:
            axes.set_ylim(0, 1.1 * max(y for points in panel.series.values() for _, y in points) or None)
        axes.set_xticks(sorted({x for points in panel.series.values() for x, _ in points}))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        axes.set_title(panel.title, fontsize=9)
        axes.set_xlabel(panel.x, fontsize=8)
        axes.set_ylabel(panel.y, fontsize=8)
        axes.tick_params(labelsize=7, which="both")
        axes.grid(alpha=0.25, linewidth=0.5)
    figure.suptitle(title, fontsize=10)
    figure.legend(
        [drawn[name] for name in drawn], list(drawn), fontsize=8, loc="outside lower center", ncols=min(len(drawn), 4)
    )
    figure.savefig(path, dpi=110)
