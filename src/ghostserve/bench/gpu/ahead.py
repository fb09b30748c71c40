"""Compiles kernels on all cores before they are needed: Triton keeps them on disk, and device time is dear."""

import multiprocessing
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, wait
from dataclasses import dataclass

import torch

from ghostserve.bench.gpu.shapes import CacheShape
from ghostserve.codes import make_code
from ghostserve.codes.base import Code, Plan
from ghostserve.cuda.kernels import Kernels
from ghostserve.cuda.shards import FlatShard, PagedShard

__all__ = ["LOST", "SHARDS", "Compilation", "compile_ahead", "compile_one", "plans"]

SHARDS = 8
LOST = (1, 6)
_WORKERS = 8  # each has a context of half a GiB on the device
_SECONDS = 120.0


@dataclass(frozen=True)
class Compilation:
    """One plan's kernel, as it is launched over `slots` slots."""

    shape: CacheShape
    code: str
    case: str
    checksums: bool
    slots: int


def plans(code: Code) -> Iterator[tuple[str, Plan]]:
    """The plans of `code` that are measured, encoding first: rebuilding reads what it wrote."""
    yield "encode", code.encode_plan
    yield "rebuild of one", code.rebuild_plan(LOST[:1])
    if code.k >= 2:
        yield "rebuild of two", code.rebuild_plan(LOST)


def compile_ahead(jobs: Sequence[Compilation], device: torch.device) -> str:
    """Fill Triton's cache in other processes; how it went, for people.

    A failure here costs time only: what is not in the cache is compiled where it is needed, and fails there if it must.
    """
    workers = min(_WORKERS, len(os.sched_getaffinity(0)) // 2, len(jobs))
    if device.type != "cuda" or workers < 2:
        return "kernels are compiled one by one"
    context = multiprocessing.get_context("spawn")  # a forked child could not use CUDA
    pool = ProcessPoolExecutor(workers, mp_context=context)
    done, late = wait([pool.submit(compile_one, job, str(device)) for job in jobs], timeout=_SECONDS)
    # Their contexts are gone before anything is measured, unless one is stuck.
    pool.shutdown(wait=not late, cancel_futures=True)
    errors = [error for future in done if (error := future.exception()) is not None]
    said = f"{len(done) - len(errors)} of {len(jobs)} kernels compiled by {workers} processes"
    return said if not errors else f"{said}; first failure: {errors[0]!r}"


def compile_one(job: Compilation, device_name: str) -> None:
    """Launch a kernel of the very same kind over memory that nobody needs."""
    device = torch.device(device_name)
    layout = job.shape.layout(1)
    code = make_code(job.code, SHARDS)
    assert code is not None
    plan = dict(plans(code))[job.case]
    memory = torch.zeros(2 * layout.total_bytes, dtype=torch.uint8, device=device)
    paged = PagedShard.of_arena(layout, memory.data_ptr())
    flat = FlatShard(memory.data_ptr() + layout.total_bytes, layout.slot_bytes)
    shards = [paged if shard < SHARDS else flat for shard in (*plan.inputs, *plan.outputs)]
    # Every slot is the same one: what counts is how many there are.
    index = torch.zeros((job.slots, 3), dtype=torch.int32, device=device)
    sums = torch.zeros((job.slots, len(shards)), dtype=torch.int64, device=device)
    bound = Kernels(layout, device).bind(plan, shards, checksums=job.checksums)
    bound.launch(index, job.slots, sums if job.checksums else None)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
