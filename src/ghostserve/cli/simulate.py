"""`ghostserve simulate`: every strategy on one simulated fleet, as a table, JSON and a picture."""

from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
from rich.console import Console
from rich.table import Table

from ghostserve.errors import ConfigError
from ghostserve.fleetsim import Constants, FleetOutcome, FleetSettings, simulate_fleet
from ghostserve.traces import Arrival

__all__ = ["run_fleet"]

_LOG_WIDTH = 150  # of a file: the table unbroken


def run_fleet(
    settings: FleetSettings,
    constants: Constants,
    arrivals: Callable[[int], Sequence[Arrival]],
    strategies: Sequence[str],
    *,
    output: Path | None,
    plot: Path | None,
) -> int:
    """Simulate, print, and write to `output` (JSON) and `plot` (PNG). Raises `ConfigError`."""
    for path in (output, plot):
        if path is not None and not path.absolute().parent.is_dir():
            raise ConfigError(f"{str(path)!r}: the folder {str(path.parent)!r} does not exist")
    if plot is not None:
        from ghostserve.bench.plots import require_matplotlib

        require_matplotlib()
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=_LOG_WIDTH)
    with console.status("simulating") as status:
        outcomes = simulate_fleet(settings, constants, arrivals, strategies, progress=status.update)
    first = outcomes[0]
    console.print(f"{first.requests} requests, {first.faults} failures, seed {settings.seed}: the same for all")
    table = Table("strategy", "latency P50, P99", "TTFT P50, P99", "P99 where it failed", "tokens/s", "GPU-h lost",
                  "recovery (s)", "available")  # fmt: skip
    for o in outcomes:
        table.add_row(
            o.strategy, f"{o.latency_p50:.2f}, {o.latency_p99:.2f}", f"{o.ttft_p50:.2f}, {o.ttft_p99:.2f}",
            f"{o.disturbed_p99:.2f}", f"{o.goodput:.0f}", f"{o.lost_gpu_hours:.3f}", f"{o.mean_recovery_s:.2f}",
            f"{o.availability:.5%}",
        )  # fmt: skip
    console.print(table)
    if output is not None:
        found = {"settings": settings, "constants": constants, "outcomes": outcomes}
        output.write_bytes(msgspec.json.format(msgspec.json.encode(found)) + b"\n")
    if plot is not None:
        _draw(outcomes, plot)
    return 0


def _draw(outcomes: Sequence[FleetOutcome], path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4), layout="constrained")
    axes = figure.subplots(1, 3, sharey=True)
    names = [o.strategy for o in outcomes]
    for axis, title, values in zip(
        axes,
        ("mean time to recovery (s)", "work lost (GPU-hours)", "latency P99 on engines that failed (s)"),
        ([o.mean_recovery_s for o in outcomes], [o.lost_gpu_hours for o in outcomes],
         [o.disturbed_p99 for o in outcomes]),
        strict=True,
    ):  # fmt: skip
        axis.barh(names, values, color="#2a6f97")
        axis.set_xlabel(title)
    axes[0].invert_yaxis()
    figure.savefig(path, format="png")
