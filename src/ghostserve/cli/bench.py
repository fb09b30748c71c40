"""`ghostserve bench`: every figure of docs/benchmarks.md, each a ratio from one run that first checks correctness."""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from ghostserve.cli.commands.online import OnlineOptions
from ghostserve.cli.machine import machine
from ghostserve.engine.config import EngineConfig
from ghostserve.errors import ConfigError

__all__ = ["BENCHMARKS", "GPU_ONLY", "NOT_IN_ALL", "BenchSettings", "run_bench"]

BENCHMARKS = ("codes", "overhead", "pause", "hybrid")
NOT_IN_ALL = ("strategies", "sensitivity", "vllm", "online", "scrub")
OF_PAPER = ("strategies", "sensitivity", "hybrid", "online")
"""What the paper's evaluation has, of what there is here."""
GPU_ONLY = ("kernels", "checkpoint", "rebuild", "contexts")
_EVERYTHING, _EVERYTHING_GPU, _PAPER = "all", "gpu-all", "paper"
_DEVICES = ("cpu", "cuda")
_LOG_WIDTH = 170  # of a file: the widest table, unbroken


@dataclass(frozen=True)
class BenchSettings:
    """What the command line says; see `ghostserve bench --help`."""

    model: str | None
    tensor_parallel_size: int
    parity: str
    rounds: int
    device: str
    quick: bool
    shape: str | None
    output: Path | None
    plot: Path | None
    online: OnlineOptions = field(default_factory=OnlineOptions)
    contexts: tuple[int, ...] | None = None
    axes: tuple[str, ...] | None = None
    scrub_rate: int = 16 << 20


def run_bench(which: str, settings: BenchSettings) -> int:
    """Run one benchmark, `all` or `gpu-all`, print tables, write JSON and plots. The exit code.

    Raises `ConfigError` for another name, or for what this machine can't do, before anything is measured.
    """
    own, on_gpu = _chosen(which, settings)
    _check_files(settings)
    console = Console()
    if not console.is_terminal:
        console = Console(width=_LOG_WIDTH)
    results: dict[str, Any] = {"machine": machine()}
    failed = False
    if on_gpu:
        failed = _gpu(console, on_gpu, settings, results)
    else:
        console.print(" ".join(f"{name} {value}" for name, value in results["machine"].items()), style="dim")
        for name in own:
            results[name] = _RUN[name](console, settings)
            _save(results, settings)
            failed = failed or (name == "online" and bool(results[name]["failed"]))
        _draw(console, results, settings)
    if which == _PAPER:
        console.print(_paper(results, settings))
    return int(failed)


def _chosen(which: str, settings: BenchSettings) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The names to run here, and those to run on a GPU; one of the two is empty."""
    if settings.device not in _DEVICES:
        raise ConfigError(f"device {settings.device!r} is unknown; allowed: {', '.join(_DEVICES)}")
    if which == _EVERYTHING_GPU:
        return (), (*GPU_ONLY, "overhead")
    if which in GPU_ONLY or (which == "overhead" and settings.device == "cuda"):
        return (), (which,)
    if which == _EVERYTHING:
        return BENCHMARKS, ()
    if which == _PAPER:
        if settings.device == "cuda":
            return (), ("contexts", "overhead")
        return tuple(name for name in OF_PAPER if name in _RUN), ()
    if which == "vllm":
        from ghostserve.bench.vllm.suite import require_vllm

        require_vllm()
    if which in BENCHMARKS or which in NOT_IN_ALL:
        return (which,), ()
    names = (_EVERYTHING, *BENCHMARKS, _EVERYTHING_GPU, *GPU_ONLY, *NOT_IN_ALL, _PAPER)
    raise ConfigError(f"benchmark {which!r} is unknown; allowed: {', '.join(names)}")


def _check_files(settings: BenchSettings) -> None:
    if settings.output is not None and not settings.output.absolute().parent.is_dir():
        raise ConfigError(f"output {str(settings.output)!r}: the folder {str(settings.output.parent)!r} does not exist")
    if settings.plot is not None:
        from ghostserve.bench.plots import require_matplotlib

        require_matplotlib()


def _save(results: dict[str, Any], settings: BenchSettings) -> None:
    """After each benchmark: a later one that is cut off takes nothing away."""
    if settings.output is not None:
        settings.output.write_text(json.dumps(results, indent=2) + "\n")


def _gpu(console: Console, names: tuple[str, ...], settings: BenchSettings, results: dict[str, Any]) -> bool:
    """Run on the GPU; True if one failed."""
    from ghostserve.bench.gpu.device import cuda_device, describe
    from ghostserve.bench.gpu.suite import as_json, run_suite
    from ghostserve.bench.gpu.tables import tables

    device = cuda_device(f"benchmark {', '.join(names)}")
    results["machine"] |= describe(device)
    console.print(" ".join(f"{name} {value}" for name, value in results["machine"].items()), style="dim")
    failed = False
    with _progress(console, "gpu") as say:
        for outcome in run_suite(names, quick=settings.quick, device=device, say=say):
            for table in tables(outcome):
                console.print(table)
            if outcome.error is not None:
                failed = True
                console.print(f"{outcome.name} failed:\n{outcome.error}", style="red", markup=False, highlight=False)
            console.print(f"{outcome.name}: {outcome.seconds:.0f} s", style="dim")
            results[outcome.name] = as_json(outcome)
            _save(results, settings)
    _draw(console, results, settings)
    return failed


def _draw(console: Console, results: dict[str, Any], settings: BenchSettings) -> None:
    if settings.plot is not None:
        from ghostserve.bench.plots import draw

        for path in draw(results, settings.plot):
            console.print(f"wrote {path}", style="dim")


def _paper(results: dict[str, Any], settings: BenchSettings) -> Table:
    from ghostserve.bench.paper import PAPER_MACHINE, compare

    found = results["machine"]
    here = found.get("device", f"{found['cores']} cores of {found['cpu']}")
    table = Table("claim", "paper", "here", "what differs", title=f"paper: {PAPER_MACHINE}; here: {here}")
    for row in compare(results, ranks=settings.tensor_parallel_size, parity=settings.parity):
        table.add_row(row.claim, row.paper, row.here, row.differs)
    return table


def _codes(console: Console, settings: BenchSettings) -> list[dict[str, Any]]:
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


def _overhead(console: Console, settings: BenchSettings) -> dict[str, Any]:
    from ghostserve.bench.overhead import bench_overhead

    parity, tp = settings.parity, settings.tensor_parallel_size
    with _progress(console, "overhead") as say:
        figure = bench_overhead(_model(settings), tp, parity, rounds=settings.rounds, progress=say)
    table = Table("round", parity, "none", "ratio", title=f"tokens/s, TP {tp}")
    for number, (a, b) in enumerate(zip(figure.protected, figure.unprotected, strict=True), 1):
        table.add_row(str(number), f"{a:.2f}", f"{b:.2f}", f"{a / b:.3f}")
    table.add_row("median", "", "", f"{figure.ratio:.3f}", style="bold")
    console.print(table)
    return {"parity": parity, "protected": figure.protected, "none": figure.unprotected, "ratio": figure.ratio}


def _pause(console: Console, settings: BenchSettings) -> list[dict[str, Any]]:
    from ghostserve.bench.pause import bench_pause
    from ghostserve.bench.workload import bench_config

    parity, tp = settings.parity, settings.tensor_parallel_size
    with _progress(console, "pause") as say, ExitStack() as stack:
        sizes: dict[str, Any] = {}
        if settings.shape is not None:
            from ghostserve.bench.shapes import SHAPES, shape_checkpoint

            model = str(stack.enter_context(shape_checkpoint(settings.shape, say)))
            shape = SHAPES[settings.shape]
            sizes = {"kv_cache_memory": shape.kv_bytes, "max_model_len": shape.context}
        else:
            model = _model(settings)

        def config(*, parity: str = parity, standbys: int) -> EngineConfig:
            return bench_config(model, tp, parity, standbys=standbys, device=settings.device, **sizes)

        figures = bench_pause(config, progress=say, quick=settings.quick)
    restart = figures[-1].seconds
    what = f"{settings.shape or 'model'}, TP {tp}, {parity}, {settings.device}"
    table = Table("way", "kill to next token, all streams (s)", "against restart", title=f"pause, {what}")
    for f in figures:
        table.add_row(f.way, f"{f.seconds:.2f}", "" if settings.quick else f"{restart / f.seconds:.1f}x faster")
    console.print(table)
    for f in figures:
        if f.phases:
            parts = Table("where the time goes", "s", title=f.way)
            for name, seconds in f.phases:
                parts.add_row(name, f"{seconds:.3f}")
            console.print(parts)
    return [{"way": f.way, "seconds": f.seconds, "phases": dict(f.phases)} for f in figures]


def _scrub(console: Console, settings: BenchSettings) -> dict[str, Any]:
    from ghostserve.bench.scrub import bench_scrub

    parity, tp, rate = settings.parity, settings.tensor_parallel_size, settings.scrub_rate
    if rate < 1:
        raise ConfigError(f"scrub_rate {rate} scrubs nothing; allowed: bytes a second from 1 on")
    with _progress(console, "scrub") as say:
        figure = bench_scrub(_model(settings), tp, parity, rate=rate, rounds=settings.rounds, progress=say)
    title = f"tokens/s, TP {tp}, {parity}, {figure.read / 2**20:.1f} MiB/s verified, {figure.passes} passes"
    table = Table("round", f"scrubbing {rate / 2**20:.0f} MiB/s", "not", "ratio", title=title)
    for number, (a, b) in enumerate(zip(figure.scrubbing, figure.plain, strict=True), 1):
        table.add_row(str(number), f"{a:.2f}", f"{b:.2f}", f"{a / b:.3f}")
    table.add_row("median", "", "", f"{figure.ratio:.3f}", style="bold")
    console.print(table)
    share = rate / figure.verified
    console.print(
        f"verified: {figure.verified / 1e9:.2f} GB/s of one core's time; {rate} B/s take {share:.2%} of a core"
    )
    return asdict(figure) | {"ratio": figure.ratio}


def _vllm(console: Console, settings: BenchSettings) -> dict[str, Any]:
    from ghostserve.bench.vllm.suite import bench_vllm
    from ghostserve.engine.files import resolve_checkpoint

    model, tp = str(resolve_checkpoint(_model(settings))), settings.tensor_parallel_size
    with _progress(console, "vllm") as say:
        return bench_vllm(
            model,
            tp,
            settings.parity,
            rounds=settings.rounds,
            quick=settings.quick,
            progress=say,
            show=console.print,
        )


def _of_engines(name: str) -> Callable[[Console, BenchSettings], Any]:
    """One of `cli.bench_strategies`, imported when it runs."""

    def run(console: Console, settings: BenchSettings) -> Any:
        from ghostserve.cli import bench_strategies

        with _progress(console, name) as say:
            return bench_strategies.BENCHMARKS[name](console, settings, settings.model, say)

    return run


def _online(console: Console, settings: BenchSettings) -> dict[str, Any]:
    from ghostserve.cli.online import run_online

    with _progress(console, "online") as say:
        return run_online(console, settings, settings.online, say)


_RUN: dict[str, Callable[[Console, BenchSettings], Any]] = {
    "codes": _codes,
    "overhead": _overhead,
    "pause": _pause,
    "hybrid": _of_engines("hybrid"),
    "strategies": _of_engines("strategies"),
    "sensitivity": _of_engines("sensitivity"),
    "scrub": _scrub,
    "vllm": _vllm,
    "online": _online,
}


def _model(settings: BenchSettings) -> str:
    from ghostserve.cli.bundled import bundled_model

    return settings.model or str(bundled_model())


@contextmanager
def _progress(console: Console, name: str) -> Iterator[Any]:
    began = time.monotonic()
    with console.status(name) as status:

        def say(text: str) -> None:
            status.update(f"{name}: {text}")
            if not console.is_terminal:  # a run that is cut off tells how far it got
                seconds = time.monotonic() - began
                console.print(f"{seconds:6.1f} s {name}: {text}", style="dim", markup=False, highlight=False)

        yield say
