"""The flush of one decode step on the device: one token of each of many sequences, scattered over the cache."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from ghostserve.bench.gpu.ahead import SHARDS
from ghostserve.bench.gpu.cases import Stage, Work
from ghostserve.bench.gpu.shapes import LLAMA_8B_TP4, LLAMA_70B_TP8, CacheShape
from ghostserve.bench.gpu.timing import Clock, Spread, quiet
from ghostserve.codes import make_code
from ghostserve.codes.cpu import CpuBackend

__all__ = ["DecodeFlushFigure", "DecodeFlushScale", "bench_decode_flush"]


@dataclass(frozen=True)
class DecodeFlushScale:
    """How much is run. `sets` of sequences take turns, so that L2 holds none of what is read."""

    shapes: tuple[CacheShape, ...] = (LLAMA_8B_TP4, LLAMA_70B_TP8)
    codes: tuple[str, ...] = ("xor", "rs:2")
    sequences: int = 64
    sets: int = 16
    rounds: int = 30
    copy_bytes: int = 1 << 30

    @classmethod
    def quick(cls) -> "DecodeFlushScale":
        return cls(shapes=(LLAMA_70B_TP8,), rounds=5)


@dataclass(frozen=True)
class DecodeFlushFigure:
    """Seconds of device time of one flush: zeroed checksums and the kernel. `replayed`: from a CUDA graph, or None."""

    shape: str
    code: str
    sequences: int
    launched: Spread
    replayed: Spread | None
    graph_error: str | None


def bench_decode_flush(
    scale: DecodeFlushScale, device: torch.device, say: Callable[[str], None]
) -> list[DecodeFlushFigure]:
    """Every case is compared with the CPU's bytes first. Raises `WrongBytesError` where they differ."""
    backend = CpuBackend()
    backend.warm_up()
    figures = []
    for shape in scale.shapes:
        stage = Stage(shape, tokens=scale.sequences * shape.block_size, sets=scale.sets, spread=1, device=device)
        # One slot of each block; the rows of parity stay apart.
        slots = np.random.default_rng(3).integers(0, shape.block_size, scale.sequences)
        at = torch.from_numpy(np.arange(scale.sequences) * shape.block_size + slots).to(device)
        stage.index = stage.index[:, at].contiguous()
        for spec in scale.codes:
            say(f"decode flush, {shape.name}, {spec}")
            code = make_code(spec, SHARDS)
            assert code is not None
            work = stage.work("encode", code, code.encode_plan, checksums=True)
            stage.check(work, backend, samples=scale.sequences)
            figures.append(_measure(stage, work, scale))
    return figures


def _measure(stage: Stage, work: Work, scale: DecodeFlushScale) -> DecodeFlushFigure:
    clock = Clock(stage.device)
    sums = stage.sums(work, scale.sets)
    assert sums is not None
    filler = torch.zeros(scale.copy_bytes, dtype=torch.uint8, device=stage.device)
    other = torch.empty_like(filler)

    def flushes() -> None:
        for number in range(scale.sets):
            sums[number].zero_()
            work.bound.launch(stage.index[number], stage.count, sums[number])

    def measure(run: Callable[[], None]) -> Spread:
        taken = []
        with quiet():
            for _ in range(scale.rounds):
                # Enough for the host to launch all of them while the device is busy: only the device is measured.
                for _ in range(4):
                    other.copy_(filler)
                begin = clock.stamp()
                run()
                taken.append(clock.seconds(begin, clock.stamp()) / scale.sets)
        return Spread.of(taken)

    launched = measure(flushes)
    graph, error = _capture(flushes, stage.device)
    replayed = None if graph is None else measure(graph.replay)
    return DecodeFlushFigure(stage.shape.name, str(work.code), scale.sequences, launched, replayed, error)


def _capture(run: Callable[[], None], device: torch.device) -> tuple[torch.cuda.CUDAGraph | None, str | None]:
    if device.type != "cuda":
        return None, "graphs need a CUDA device"
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            run()
    except RuntimeError as error:
        # A figure that could not be taken is reported as such; the one without a graph stands.
        return None, str(error)
    return graph, None
