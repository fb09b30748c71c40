"""The figures as a picture: P50 and P99 against the failures, and the whole distribution at the worst of them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

__all__ = ["draw_online"]

_COLOURS = {
    "none": "#8d99ae",
    "replicate-host": "#e9a15b",
    "replicate-ssd": "#c97b63",
    "parity-rebuild": "#61a5c2",
    "parity-hybrid": "#14507a",
}


def draw_online(online: Mapping[str, Any], folder: Path) -> Path:
    """Draw what `as_json` gives into `folder`/online.png; makes the folder. Needs matplotlib."""
    from matplotlib.figure import Figure

    folder.mkdir(parents=True, exist_ok=True)
    figures: Sequence[Mapping[str, Any]] = online["figures"]
    strategies = list(dict.fromkeys(f["strategy"] for f in figures))
    cases = [case["label"] for case in online["cases"]]
    colours = {name: _COLOURS[name] for name in strategies}
    drawing = Figure(figsize=(11, 3.6), layout="constrained")
    p50, p99, whole = drawing.subplots(1, 3)
    for axes, name in ((p50, "p50"), (p99, "p99")):
        _bars(axes, figures, cases, colours, name)
    worst = max(online["cases"], key=lambda case: len(case["hits"]) + len(case["timed"]))["label"]
    for figure in (f for f in figures if f["case"] == worst):
        values = sorted(figure["latencies"])
        shares = [(rank + 1) / len(values) for rank in range(len(values))]
        whole.step(values, shares, where="post", color=colours[figure["strategy"]], linewidth=1.6)
    whole.set_title(f"share of requests done, failures {worst}", fontsize=9)
    whole.set_xlabel("latency (s)", fontsize=8)
    whole.set_ylim(0, 1.02)
    for axes in (p50, p99, whole):
        axes.tick_params(labelsize=8)
        axes.spines[["top", "right"]].set_visible(False)
    drawing.legend(*p50.get_legend_handles_labels(), fontsize=8, loc="outside lower center", ncols=len(strategies))
    path = folder / "online.png"
    drawing.savefig(path, dpi=110)
    return path


def _bars(
    axes: Any, figures: Sequence[Mapping[str, Any]], cases: Sequence[str], colours: Mapping[str, str], name: str
) -> None:
    width = 0.8 / max(1, len(colours))
    for number, (strategy, colour) in enumerate(colours.items()):
        found = {f["case"]: f["latency"][name] for f in figures if f["strategy"] == strategy}
        shown = [(at, found[case]) for at, case in enumerate(cases) if case in found]
        places = [at + (number - (len(colours) - 1) / 2) * width for at, _ in shown]
        axes.bar(places, [value for _, value in shown], width, color=colour, label=strategy)
    axes.set_xticks(range(len(cases)), cases)
    axes.set_xlabel("failures: requests hit, or their mean time between", fontsize=8)
    axes.set_title(f"latency {name.upper()} (s)", fontsize=9)
