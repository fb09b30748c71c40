"""The CPU backend against ISA-L, on one core and in the same run: `python -m ghostserve.bench.codes`."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from time import perf_counter

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from ghostserve.codes import Plan, ReedSolomonCode, XorCode
from ghostserve.codes.cpu import CpuBackend
from ghostserve.codes.isal import Isal
from ghostserve.errors import GhostServeError

__all__ = ["CodeFigure", "bench_codes", "main"]

_DATA_SHARDS = 8
_SLOTS = 64
_SLOT_BYTES = (15_360, 7_680)

Bytes = NDArray[np.uint8]


@dataclass(frozen=True)
class CodeFigure:
    """Medians of one case; GB/s are 10^9 bytes of the 8 read shards a second."""

    case: str
    slots: int
    slot_bytes: int
    ours_gbps: float
    isal_gbps: float
    rounds: int

    @property
    def ratio(self) -> float:
        """Our speed as a multiple of ISA-L's."""
        return self.ours_gbps / self.isal_gbps


def bench_codes(*, seconds: float = 1.0, backend: CpuBackend | None = None) -> list[CodeFigure]:
    """Encode and rebuild with 8 data shards, ours and ISA-L in turns, for about `seconds` a case.

    Every case first compares the bytes: raises `GhostServeError` where they differ, or where ISA-L is
    missing. An xor has no counterpart of its own in ISA-L's coder, so ISA-L runs it as a matrix row of ones.
    """
    backend = backend or CpuBackend()
    isal = Isal()
    backend.warm_up()
    rs1, rs2, xor = (
        ReedSolomonCode(_DATA_SHARDS, 1),
        ReedSolomonCode(_DATA_SHARDS, 2),
        XorCode(_DATA_SHARDS, 1),
    )
    plans = {
        "rs encode 8:2": rs2.encode_plan,
        "rs encode 8:1": rs1.encode_plan,
        "xor encode 8:1": xor.encode_plan,
        "rs rebuild of 1": rs2.rebuild_plan([3]),
        "rs rebuild of 2": rs2.rebuild_plan([1, 6]),
    }
    return [
        _measure(case, plan, slot_bytes, backend, isal, seconds)
        for slot_bytes in _SLOT_BYTES
        for case, plan in plans.items()
    ]


def _measure(case: str, plan: Plan, slot_bytes: int, backend: CpuBackend, isal: Isal, seconds: float) -> CodeFigure:
    rng = np.random.default_rng(slot_bytes)
    shape = (_SLOTS, slot_bytes)
    inputs = [rng.integers(0, 256, shape, dtype=np.uint8) for _ in plan.inputs]
    ours = [np.full(shape, 0xAA, np.uint8) for _ in plan.outputs]
    theirs = [np.full(shape, 0x55, np.uint8) for _ in plan.outputs]

    def run_ours() -> None:
        backend.run(plan, inputs, ours)

    run_isal = isal.prepare(_matrix(plan), inputs, theirs)
    run_ours()
    run_isal()
    if not all(np.array_equal(a, b) for a, b in zip(ours, theirs, strict=True)):
        raise GhostServeError(f"{case}, {slot_bytes} bytes a slot: our bytes differ from ISA-L's")
    own, other = _interleave((run_ours, run_isal), seconds)
    read = len(plan.inputs) * _SLOTS * slot_bytes / 1e9
    return CodeFigure(case, _SLOTS, slot_bytes, read / median(own), read / median(other), len(own))


def _matrix(plan: Plan) -> NDArray[np.uint8]:
    """The plan of a position-wise code without scratch, as a matrix: uint8 (outputs, inputs)."""
    matrix = np.zeros((len(plan.outputs), len(plan.inputs)), np.uint8)
    for step in plan.steps:
        for source, coefficient in step.terms:
            matrix[step.target - len(plan.inputs), source] = coefficient
    return matrix


def _interleave(runs: Sequence[Callable[[], None]], seconds: float) -> list[list[float]]:
    """Seconds of each run, taken in turns so that what disturbs one disturbs all; at least 5 rounds."""
    times: list[list[float]] = [[] for _ in runs]
    end = perf_counter() + seconds
    while perf_counter() < end or len(times[0]) < 5:
        for run, taken in zip(runs, times, strict=True):
            start = perf_counter()
            run()
            taken.append(perf_counter() - start)
    return times


def main() -> None:
    """Print the figures of `bench_codes` as a table."""
    backend = CpuBackend()
    table = Table(title=f"CPU backend ({backend.method}) and ISA-L on one core, medians; bytes are equal")
    for heading in ("case", "slots x bytes", "ours GB/s", "ISA-L GB/s", "ratio", "rounds"):
        table.add_column(heading, justify="left" if heading == "case" else "right")
    for figure in bench_codes(backend=backend):
        table.add_row(
            figure.case,
            f"{figure.slots} x {figure.slot_bytes:,}",
            f"{figure.ours_gbps:.1f}",
            f"{figure.isal_gbps:.1f}",
            f"{figure.ratio:.2f}",
            str(figure.rounds),
        )
    Console().print(table)


if __name__ == "__main__":
    main()
