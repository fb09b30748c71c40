"""Runs GPU benchmarks one after the other; one that fails does not stop the others."""

import gc
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, is_dataclass
from typing import Any

import torch

from ghostserve.errors import ConfigError

__all__ = ["GPU_BENCHMARKS", "Outcome", "as_json", "run_suite"]

Say = Callable[[str], None]
Figures = dict[str, Sequence[Any]]
Runner = Callable[[bool, torch.device, Say], Figures]


@dataclass(frozen=True)
class Outcome:
    """Of one benchmark: its figures by kind, or why it has none (a traceback)."""

    name: str
    seconds: float
    figures: Figures = field(default_factory=dict)
    error: str | None = None


def _kernels(quick: bool, device: torch.device, say: Say) -> Figures:
    from ghostserve.bench.gpu.decode_flush import DecodeFlushScale, bench_decode_flush
    from ghostserve.bench.gpu.kernels import KernelScale, bench_kernels

    kernels = bench_kernels(KernelScale.quick() if quick else KernelScale(), device, say)
    _release(device)
    flushes = bench_decode_flush(DecodeFlushScale.quick() if quick else DecodeFlushScale(), device, say)
    return {"kernels": kernels, "decode_flush": flushes}


def _checkpoint(quick: bool, device: torch.device, say: Say) -> Figures:
    from ghostserve.bench.gpu.checkpoint import CheckpointScale, bench_checkpoint

    alone, shared = bench_checkpoint(CheckpointScale.quick() if quick else CheckpointScale(), device, say)
    return {"checkpoint": alone, "checkpoint_beside_matmuls": shared}


def _rebuild(quick: bool, device: torch.device, say: Say) -> Figures:
    from ghostserve.bench.gpu.rebuild import RebuildScale, bench_rebuild

    return {"rebuild": bench_rebuild(RebuildScale.quick() if quick else RebuildScale(), device, say)}


def _overhead(quick: bool, device: torch.device, say: Say) -> Figures:
    from ghostserve.bench.gpu.overhead import OverheadScale, bench_gpu_overhead

    return {"overhead": bench_gpu_overhead(OverheadScale.quick() if quick else OverheadScale(), device, say)}


def _contexts(quick: bool, device: torch.device, say: Say) -> Figures:
    from ghostserve.bench.gpu.contexts import ContextScale, bench_contexts

    return {"contexts": bench_contexts(ContextScale.quick() if quick else ContextScale(), device, say)}


GPU_BENCHMARKS: dict[str, Runner] = {
    "kernels": _kernels,
    "checkpoint": _checkpoint,
    "rebuild": _rebuild,
    "overhead": _overhead,
    "contexts": _contexts,
}


def run_suite(
    names: Sequence[str],
    *,
    quick: bool,
    device: torch.device,
    say: Say,
    runners: dict[str, Runner] = GPU_BENCHMARKS,
) -> Iterator[Outcome]:
    """The outcome of each benchmark as soon as it is there. Raises `ConfigError` for a name that does not exist."""
    unknown = [name for name in names if name not in runners]
    if unknown:
        raise ConfigError(f"GPU benchmark {unknown[0]!r} is unknown; allowed: {', '.join(runners)}")
    for name in names:
        yield _run(name, runners[name], quick, device, say)
        _release(device)


def _run(name: str, runner: Runner, quick: bool, device: torch.device, say: Say) -> Outcome:
    began = time.monotonic()
    try:
        figures = runner(quick, device, lambda text: say(f"{name}: {text}"))
    except Exception:  # noqa: BLE001 - told in full in the outcome; device time is too dear to lose the other figures
        return Outcome(name, time.monotonic() - began, error=traceback.format_exc())
    return Outcome(name, time.monotonic() - began, figures)


def as_json(outcome: Outcome) -> dict[str, Any]:
    """For a JSON file: figures with their fields and what their properties derive from them."""
    result: dict[str, Any] = {"seconds": outcome.seconds}
    result |= {kind: [_figure(figure) for figure in figures] for kind, figures in outcome.figures.items()}
    return result if outcome.error is None else result | {"error": outcome.error}


def _figure(figure: Any) -> dict[str, Any]:
    assert is_dataclass(figure)
    assert not isinstance(figure, type)
    derived = [name for name, found in vars(type(figure)).items() if isinstance(found, property)]
    return asdict(figure) | {name: getattr(figure, name) for name in derived}


def _release(device: torch.device) -> None:
    """Caches are large: the next benchmark gets the device as the last one found it."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
