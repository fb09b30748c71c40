"""`ghostserve plan`: the table, the JSON and the picture of a plan."""

from pathlib import Path

import msgspec
from rich.console import Console
from rich.table import Table

from ghostserve.cli.sizes import show_size
from ghostserve.errors import ConfigError
from ghostserve.plan import Failures, Hardware, ModelShape, Plan, Wishes, make_plan

__all__ = ["run_plan"]

_LOG_WIDTH = 150  # of a file: the table unbroken


def run_plan(
    model: ModelShape, hardware: Hardware, failures: Failures, wishes: Wishes, *, output: Path | None, plot: Path | None
) -> int:
    """Print the plan, write it to `output` (JSON) and `plot` (PNG). Raises `ConfigError` for files that can't be."""
    for path in (output, plot):
        if path is not None and not path.absolute().parent.is_dir():
            raise ConfigError(f"{str(path)!r}: the folder {str(path.parent)!r} does not exist")
    if plot is not None:
        from ghostserve.bench.plots import require_matplotlib

        require_matplotlib()
    plan = make_plan(model, hardware, failures, wishes)
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=_LOG_WIDTH)
    console.print(
        f"{model.name}, TP {wishes.tensor_parallel_size}, {hardware.name}: {wishes.sequences} x {wishes.context} tokens"
        f", prefill {plan.prefill_tokens_per_s:.0f} tokens/s, {plan.failures_a_year:.2f} failures a year of this engine"
    )
    table = Table("strategy", "K", "host", "disk", "overhead", "pause (s)", "GPU-hours lost a year")
    for o in plan.outlooks:
        table.add_row(
            o.strategy,
            str(o.parity or ""),
            show_size(o.host_bytes),
            show_size(o.disk_bytes),
            f"{o.overhead:.1%}",
            f"{o.pause_s:.2f}",
            f"{o.lost_gpu_hours:.3f}",
            style="bold" if o == plan.chosen else None,
        )
    console.print(table)
    for reason in plan.reasons:
        console.print(f"- {reason}", markup=False)
    console.print(f"sources: {hardware.source}; {failures.source}", style="dim", markup=False)
    if output is not None:
        inputs = {"model": model, "hardware": hardware, "failures": failures, "wishes": wishes}
        output.write_bytes(msgspec.json.format(msgspec.json.encode({"inputs": inputs, "plan": plan})) + b"\n")
    if plot is not None:
        _draw(plan, plot)
    return 0


def _draw(plan: Plan, path: Path) -> None:
    from matplotlib.figure import Figure

    labels = [f"{o.strategy} {o.parity or ''}".strip() for o in plan.outlooks]
    figure = Figure(figsize=(9, 4), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    colours = ["#2a6f97" if o == plan.chosen else "#a9c9dd" for o in plan.outlooks]
    left.barh(labels, [o.pause_s for o in plan.outlooks], color=colours)
    left.set_xlabel("pause after one lost GPU (s)")
    right.barh(labels, [o.host_bytes / 1e9 for o in plan.outlooks], color=colours)
    right.set_xlabel("host memory (GB)")
    left.invert_yaxis()
    figure.savefig(path, format="png")
