"""`ghostserve simulate --calibrate` and `--check`: constants from a real engine, and the simulator held against one."""

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import msgspec
from rich.console import Console
from rich.table import Table

from ghostserve.bench.calibrate.check import AIM, Check, check
from ghostserve.bench.calibrate.measure import Calibration, calibrate
from ghostserve.bench.shapes import SHAPES, shape_checkpoint
from ghostserve.bench.workload import bench_config
from ghostserve.cli.machine import machine
from ghostserve.engine.config import EngineConfig
from ghostserve.errors import ConfigError
from ghostserve.fleetsim import Constants

__all__ = ["run_calibrate", "run_check"]

_LOG_WIDTH = 150  # of a file: the table unbroken


def run_calibrate(model: str, tensor_parallel_size: int, *, rounds: int, constants_out: Path | None) -> int:
    """Measure, print, and write the JSON that `--constants` reads. Raises `ConfigError`, `GhostServeError`."""
    console = _console([constants_out])
    with _engine(console, model, tensor_parallel_size) as (config, say):
        found = calibrate(config, rounds=rounds, progress=say)
    _show_constants(console, found)
    _write(constants_out, found.constants)
    return 0


def run_check(
    model: str,
    tensor_parallel_size: int,
    *,
    rounds: int,
    requests: int,
    seed: int,
    constants: Constants | None,
    constants_out: Path | None,
    output: Path | None,
) -> int:
    """Print real and simulated side by side; the exit code is 1 where an aimed-at figure is further off than the aim.

    `constants`: use these and measure none. Raises `ConfigError`, `GhostServeError`.
    """
    console = _console([constants_out, output])
    with _engine(console, model, tensor_parallel_size) as (config, say):
        found = check(config, rounds=rounds, requests=requests, seed=seed, progress=say, constants=constants)
    _show_constants(console, found.calibration)
    last = found.scenario.arrivals[-1].at_seconds
    kills = ", ".join(f"rank {rank} at {at:.2f} s" for at, rank in found.scenario.kills)
    console.print(f"{requests} requests in {last:.1f} s, kills: {kills}, seed {seed}; medians of {rounds} real runs")
    table = Table(
        "strategy", "seconds", "engine (least, most)", "simulator (least, most)", "off, median of runs (least, most)"
    )
    for each in found.checked:
        for name, title in _TITLES.items():
            real, simulated = each.real(name), each.said(name)
            offs = each.offs(name)
            off = f"{each.off(name):+.1%} ({min(offs):+.1%}, {max(offs):+.1%})"
            table.add_row(each.strategy, title, _range(real), _range(simulated), off)
    console.print(table)
    good = all(each.within for each in found.checked)
    within = f"{'' if good else 'NOT '}within {AIM:.0%}"
    console.print(f"mean latency and makespan are {within} in the median run under every strategy")
    _write(constants_out, found.calibration.constants)
    if output is not None:
        output.write_bytes(msgspec.json.format(msgspec.json.encode(_as_json(found))) + b"\n")
    return 0 if good else 1


_TITLES = {
    "mean": "mean latency",
    "p99": "P99 latency",
    "ttft": "mean time to first token",
    "makespan": "makespan",
    "pause": "pause after a kill",
}


def _range(values: Sequence[float]) -> str:
    return f"{statistics.median(values):.3f} ({min(values):.3f}, {max(values):.3f})"


def _as_json(found: Check) -> dict[str, object]:
    return {"machine": machine(), "constants": found.calibration.constants, "scenario": found.scenario,
            "checked": found.checked}  # fmt: skip


def _console(files: list[Path | None]) -> Console:
    for path in files:
        if path is not None and not path.absolute().parent.is_dir():
            raise ConfigError(f"{str(path)!r}: the folder {str(path.parent)!r} does not exist")
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=_LOG_WIDTH)


@contextmanager
def _engine(
    console: Console, model: str, tensor_parallel_size: int
) -> Iterator[tuple[EngineConfig, Callable[[str], None]]]:
    """Settings of an engine on the CPU that serves `model`: a checkpoint, or the name of a shape that is made here."""
    console.print(" ".join(f"{name} {value}" for name, value in machine().items()), style="dim")
    began = time.monotonic()
    with ExitStack() as stack:
        status = stack.enter_context(console.status("calibrating"))

        def say(text: str) -> None:
            status.update(text)
            if not console.is_terminal:
                console.print(f"{time.monotonic() - began:6.1f} s {text}", style="dim", markup=False)

        if model not in SHAPES:
            yield bench_config(model, tensor_parallel_size, "none"), say
            return
        folder, shape = stack.enter_context(shape_checkpoint(model, say)), SHAPES[model]
        yield (
            bench_config(
                str(folder),
                tensor_parallel_size,
                "none",
                kv_cache_memory=shape.kv_bytes,
                max_model_len=shape.context,
            ),
            say,
        )


def _show_constants(console: Console, found: Calibration) -> None:
    if found.samples:
        console.print("samples: " + ", ".join(f"{name} {count}" for name, count in found.samples.items()))
    for name, value in msgspec.to_builtins(found.constants).items():
        console.print(f"{name} {value:.6g}" if isinstance(value, float) else f"{name} {value}", markup=False)


def _write(path: Path | None, constants: Constants) -> None:
    if path is not None:
        path.write_bytes(msgspec.json.format(msgspec.json.encode(constants)) + b"\n")
