"""The speed of encoding and rebuilding on the device, against what a plain copy on the same device moves."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from ghostserve.bench.gpu.ahead import SHARDS, Compilation, compile_ahead, plans
from ghostserve.bench.gpu.cases import Stage, Work
from ghostserve.bench.gpu.shapes import LLAMA_8B_TP4, LLAMA_70B_TP8, CacheShape
from ghostserve.bench.gpu.timing import Clock, Spread, quiet
from ghostserve.codes import make_code
from ghostserve.codes.cpu import CpuBackend

__all__ = ["KernelFigure", "KernelScale", "bench_kernels"]


@dataclass(frozen=True)
class KernelScale:
    """How much is run; the default is what docs/benchmarks.md shows."""

    shapes: tuple[CacheShape, ...] = (LLAMA_8B_TP4, LLAMA_70B_TP8)
    codes: tuple[str, ...] = ("xor", "rdp", "rs:2", "rs:4")
    limited: tuple[str, ...] = ("xor", "rs:2")  # codes that are encoded with few thread blocks, too
    programs: tuple[int, ...] = (8, 16, 32, 64)
    tokens: int = 2048
    sets: int = 4
    spread: int = 4
    copy_bytes: int = 1 << 30
    rounds: int = 20
    samples: int = 64

    @classmethod
    def quick(cls) -> "KernelScale":
        """A smoke run: every path, small."""
        return cls(codes=("xor", "rs:2"), limited=("rs:2",), programs=(16,), sets=2, spread=1, rounds=5, samples=16)


@dataclass(frozen=True)
class KernelFigure:
    """One case. `seconds` are of one launch; GB/s are 10^9 bytes read and written a second; `programs` None: no limit.

    `compile_seconds`: the first launch, with its compilation (or with loading it from Triton's cache).
    """

    shape: str
    code: str
    case: str
    checksums: bool
    programs: int | None
    traffic_bytes: int
    seconds: Spread
    ceiling_gbps: float
    compile_seconds: float

    @property
    def gbps(self) -> float:
        return self.traffic_bytes / self.seconds.median / 1e9

    @property
    def of_ceiling(self) -> float:
        return self.gbps / self.ceiling_gbps


def bench_kernels(scale: KernelScale, device: torch.device, say: Callable[[str], None]) -> list[KernelFigure]:
    """Every case is first compared with the CPU's bytes and checksums; then all take turns with the copy.

    Raises `WrongBytesError` where bytes differ.
    """
    backend = CpuBackend()
    backend.warm_up()
    figures: list[KernelFigure] = []
    say("compiling kernels ahead")
    say(compile_ahead(list(_compilations(scale)), device))
    for shape in scale.shapes:
        figures += _Shape(shape, scale, device, backend, say).figures()
    return figures


def _compilations(scale: KernelScale) -> Iterator[Compilation]:
    # Array codes take longest: first.
    for spec in sorted(scale.codes, key=lambda spec: spec != "rdp"):
        code = make_code(spec, SHARDS)
        assert code is not None
        for shape in scale.shapes:
            for case, _ in plans(code):
                for checksums in (True, False):
                    yield Compilation(shape, spec, case, checksums, scale.tokens)


class _Shape:
    """All cases of one cache shape."""

    def __init__(
        self,
        shape: CacheShape,
        scale: KernelScale,
        device: torch.device,
        backend: CpuBackend,
        say: Callable[[str], None],
    ) -> None:
        self.shape, self.scale, self.clock, self.say = shape, scale, Clock(device), say
        say(f"{shape.name}: filling caches")
        self.stage = Stage(shape, tokens=scale.tokens, sets=scale.sets, spread=scale.spread, device=device)
        self.source = torch.ones(scale.copy_bytes, dtype=torch.uint8, device=device).random_(0, 256)
        self.target = torch.empty_like(self.source)
        self.cases: list[tuple[Work, int | None, float]] = []
        for spec in scale.codes:
            code = make_code(spec, SHARDS)
            assert code is not None
            for name, plan in plans(code):
                say(f"{shape.name}: {code} {name}: comparing bytes")
                for checksums in (True, False):
                    began = time.perf_counter()
                    work = self.stage.work(name, code, plan, checksums=checksums)
                    self.stage.launch(work, self.stage.sums(work, scale.sets))
                    self.clock.wait()
                    taken = time.perf_counter() - began
                    self.stage.check(work, backend, samples=scale.samples)
                    self.cases.append((work, None, taken))
                    if name == "encode" and checksums and spec in scale.limited:
                        self.stage.check(work, backend, samples=scale.samples, programs=scale.programs[0])
                        self.cases += [(work, programs, taken) for programs in scale.programs]

    def figures(self) -> list[KernelFigure]:
        times: list[list[float]] = [[] for _ in self.cases]
        copies: list[float] = []
        self.say(f"{self.shape.name}: measuring {len(self.cases)} cases in turns, {self.scale.rounds} rounds")
        with quiet():
            for _ in range(self.scale.rounds):
                taken, copied = self._round()
                copies += copied
                for own, seconds in zip(times, taken, strict=True):
                    own.append(seconds)
        ceiling = 2 * self.scale.copy_bytes / Spread.of(copies).median / 1e9
        return [
            KernelFigure(
                shape=self.shape.name,
                code=str(work.code),
                case=work.name,
                checksums=work.checksums,
                programs=programs,
                traffic_bytes=work.traffic,
                seconds=Spread.of(own),
                ceiling_gbps=ceiling,
                compile_seconds=compiled,
            )
            for (work, programs, compiled), own in zip(self.cases, times, strict=True)
        ]

    def _round(self) -> tuple[list[float], list[float]]:
        """Seconds of one launch of each case, and of the copies between them.

        Before each case stands a copy: it is the ceiling's measurement, it puts other bytes into L2, and while it runs
        the host gets ahead, so that no launch waits for Python. The zeroing of the checksums counts.
        """
        sums = [self.stage.sums(work, self.scale.sets) for work, _, _ in self.cases]
        self.clock.wait()
        self._copy()
        stamps = []
        for (work, programs, _), own in zip(self.cases, sums, strict=True):
            before = self.clock.stamp()
            self._copy()
            begin = self.clock.stamp()
            if own is not None:
                own.zero_()
            self.stage.launch(work, own, programs=programs)
            stamps.append((before, begin, self.clock.stamp()))
        taken = [self.clock.seconds(begin, end) / self.scale.sets for _, begin, end in stamps]
        return taken, [self.clock.seconds(before, begin) for before, begin, _ in stamps]

    def _copy(self) -> None:
        self.target.copy_(self.source)
