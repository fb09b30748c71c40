"""`ghostserve bench`: every figure of docs/benchmarks.md, each a ratio from one run that first checks correctness."""

import json
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from ghostserve.errors import ConfigError

__all__ = ["BENCHMARKS", "run_bench"]

BENCHMARKS = ("codes", "overhead", "pause")


def run_bench(
    which: str, *, model: str, tensor_parallel_size: int, parity: str, rounds: int, output: Path | None
) -> None:
    """Run one benchmark or `all`, print tables, and write JSON to `output`. Raises `ConfigError` for another name."""
    if which not in ("all", *BENCHMARKS):
        raise ConfigError(f"benchmark {which!r} is unknown; allowed: all, {', '.join(BENCHMARKS)}")
    console = Console()
    results: dict[str, Any] = {"machine": _machine()}
    console.print(" ".join(f"{name} {value}" for name, value in results["machine"].items()), style="dim")
    if which in ("all", "codes"):
        results["codes"] = _codes(console)
    if which in ("all", "overhead"):
        results["overhead"] = _overhead(console, model, tensor_parallel_size, parity, rounds)
    if which in ("all", "pause"):
        results["pause"] = _pause(console, model, tensor_parallel_size, parity)
    if output is not None:
        output.write_text(json.dumps(results, indent=2) + "\n")


def _codes(console: Console) -> list[dict[str, Any]]:
    from ghostserve.bench.codes import bench_codes

    with _progress(console, "codes against ISA-L, one core"):
        figures = bench_codes()
    table = Table("case", "slots x bytes", "GhostServe GB/s", "ISA-L GB/s", "ratio", title="codes, one core")
    for f in figures:
        table.add_row(
            f.case, f"{f.slots} x {f.slot_bytes}", f"{f.ours_gbps:.2f}", f"{f.isal_gbps:.2f}", f"{f.ratio:.2f}"
        )
    console.print(table)
    return [{"case": f.case, "slot_bytes": f.slot_bytes, "ours": f.ours_gbps, "isal": f.isal_gbps} for f in figures]


def _overhead(console: Console, model: str, tp: int, parity: str, rounds: int) -> dict[str, Any]:
    from ghostserve.bench.overhead import bench_overhead

    with _progress(console, "overhead") as say:
        figure = bench_overhead(model, tp, parity, rounds=rounds, progress=say)
    table = Table("round", parity, "none", "ratio", title=f"tokens/s, TP {tp}")
    for number, (a, b) in enumerate(zip(figure.protected, figure.unprotected, strict=True), 1):
        table.add_row(str(number), f"{a:.2f}", f"{b:.2f}", f"{a / b:.3f}")
    table.add_row("median", "", "", f"{figure.ratio:.3f}", style="bold")
    console.print(table)
    return {"parity": parity, "protected": figure.protected, "none": figure.unprotected, "ratio": figure.ratio}


def _pause(console: Console, model: str, tp: int, parity: str) -> list[dict[str, Any]]:
    from ghostserve.bench.pause import bench_pause

    with _progress(console, "pause") as say:
        figures = bench_pause(model, tp, parity, progress=say)
    restart = figures[-1].seconds
    table = Table("way", "kill to next token, all streams (s)", "against restart", title=f"pause, TP {tp}, {parity}")
    for f in figures:
        table.add_row(f.way, f"{f.seconds:.2f}", f"{restart / f.seconds:.1f}x faster")
    console.print(table)
    return [{"way": f.way, "seconds": f.seconds} for f in figures]


@contextmanager
def _progress(console: Console, name: str) -> Iterator[Any]:
    with console.status(name) as status:
        yield lambda text: status.update(f"{name}: {text}")


def _machine() -> dict[str, str]:
    import os

    packages = {name: version(name) for name in ("ghostserve", "torch", "transformers", "numba", "numpy")}
    return {"cores": str(len(os.sched_getaffinity(0))), "cpu": _cpu(), "python": platform.python_version(), **packages}


def _cpu() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()
