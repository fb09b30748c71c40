"""How much slower a model runs while its KV is protected: prefill in chunks, and decode of a batch at long context.

One rank of the model runs on the GPU, without all-reduces; its peers' caches are buffers on the same GPU that nobody
writes. It encodes every chunk of the group here; with round robin each rank encodes one of N, which is measured too.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch

from ghostserve.bench.gpu.device import require_device_memory
from ghostserve.bench.gpu.llama import RANK_8B_TP4, RANK_70B_TP8, LlamaRank, RankShape
from ghostserve.bench.gpu.shadow import Flush, OverheadFigure, Shadow, Variant, shadow
from ghostserve.bench.gpu.shapes import CacheShape
from ghostserve.bench.gpu.world import World
from ghostserve.codes.backend import Backend
from ghostserve.codes.cpu import CpuBackend
from ghostserve.cuda.runtime import CudaRuntime, Runtime, Stream
from ghostserve.parity.ranges import SlotRange

__all__ = ["Decode", "OverheadScale", "Prefill", "bench_gpu_overhead"]


@dataclass(frozen=True)
class Prefill:
    """One prompt of `tokens`, in chunks of `chunk`."""

    rank: RankShape
    tokens: int = 65_536
    chunk: int = 2048
    rounds: int | None = None
    """None: as the scale says."""


@dataclass(frozen=True)
class Decode:
    """`steps` tokens of each of `sequences`, each with a context of `context` tokens."""

    rank: RankShape
    sequences: int = 32
    context: int = 8192
    steps: int = 64
    graphs: tuple[bool, ...] = (True, False)


@dataclass(frozen=True)
class OverheadScale:
    """How much is run; the default is what docs/benchmarks.md shows."""

    prefills: tuple[Prefill, ...] = (Prefill(RANK_8B_TP4), Prefill(RANK_70B_TP8, rounds=3))
    decodes: tuple[Decode, ...] = (Decode(RANK_8B_TP4),)
    parity: str = "rs:2"
    rounds: int = 5
    decode_rounds: int = 7
    samples: int = 64

    @classmethod
    def quick(cls) -> "OverheadScale":
        few = replace(RANK_8B_TP4, cache=replace(RANK_8B_TP4.cache, name="Llama-3-8B TP 4, 4 layers", layers=4))
        return cls(
            prefills=(Prefill(few, tokens=8192),),
            decodes=(Decode(few, sequences=8, context=1024, steps=16),),
            rounds=2,
            decode_rounds=2,
            samples=16,
        )


def bench_gpu_overhead(
    scale: OverheadScale, device: torch.device, say: Callable[[str], None], runtime: Runtime | None = None
) -> list[OverheadFigure]:
    """In the end sampled slots of the store are compared with the CPU's parity: `WrongBytesError` where they differ."""
    runtime = CudaRuntime(device) if runtime is None else runtime
    backend = CpuBackend()
    backend.warm_up()
    figures: list[OverheadFigure] = []
    for prefill in scale.prefills:
        figures += _prefill(prefill, scale, runtime, backend, say)
    for decode in scale.decodes:
        figures += _decode(decode, scale, runtime, backend, say)
    return figures


def _prefill(
    job: Prefill, scale: OverheadScale, runtime: Runtime, backend: Backend, say: Callable[[str], None]
) -> list[OverheadFigure]:
    cache = job.rank.cache
    blocks = cache.blocks(job.tokens)
    say(f"{cache.name}: prefill of {job.tokens:,} tokens: weights, caches and store")
    with World(runtime, cache, blocks, scale.parity, num_parity_blocks=blocks) as world:
        model, stream = _model(job.rank, world, job.tokens), runtime.stream()
        tokens = torch.randint(0, job.rank.vocabulary, (job.tokens,), device=runtime.device)
        a_chunk = job.chunk // cache.block_size
        everything = [SlotRange(block, 1, block, 0, cache.block_size) for block in range(blocks)]
        chunks = [everything[first : first + a_chunk] for first in range(0, blocks, a_chunk)]

        def work(flush: Flush) -> float:
            with runtime.use(stream):
                began = time.perf_counter()
                for number, ranges in enumerate(chunks):
                    start = number * job.chunk
                    model.prefill(tokens[start : start + job.chunk], start)
                    flush(number, ranges)
                stream.synchronize()
                return time.perf_counter() - began

        with shadow(world, stream, backend) as own:
            name = f"prefill of {job.tokens:,} in chunks of {job.chunk:,}"
            found = list(
                own.compare(cache.name, name, work, _variants(world, scale.parity), job.rounds or scale.rounds, say)
            )
            own.verify(work, everything, backend, samples=scale.samples)
    return found


def _decode(
    job: Decode, scale: OverheadScale, runtime: Runtime, backend: Backend, say: Callable[[str], None]
) -> list[OverheadFigure]:
    cache = job.rank.cache
    blocks = cache.blocks(job.sequences * job.context)
    written = cache.blocks(job.steps)  # of each sequence: only these need parity here
    say(f"{cache.name}: decode of {job.sequences} x {job.context:,} tokens: weights, caches and store")
    with World(runtime, cache, blocks, scale.parity, num_parity_blocks=job.sequences * written) as world:
        model, stream = _model(job.rank, world, job.context), runtime.stream()
        steps = [_step_ranges(job, written, step) for step in range(job.steps)]
        found: list[OverheadFigure] = []
        with shadow(world, stream, backend) as own:
            for graph in job.graphs:
                runner = _Decoder(model, job, runtime, stream, graph=graph)
                work = partial(_decode_work, runner, steps)
                name = f"decode of {job.sequences} at {job.context:,}, {'CUDA graph' if graph else 'eager'}"
                found += _timed_steps(own, cache.name, name, work, job, scale, say)
                own.verify(work, [r for step in steps for r in step], backend, samples=scale.samples)
    return found


def _timed_steps(
    own: Shadow,
    model: str,
    name: str,
    work: Callable[[Flush], float],
    job: Decode,
    scale: OverheadScale,
    say: Callable[[str], None],
) -> list[OverheadFigure]:
    """Figures of one step; and the same work without checkpoints twice: how far equal things lie apart."""
    variants = (*_variants(own.world, scale.parity), Variant("none, again", None))
    figures = own.compare(model, name, work, variants, scale.decode_rounds, say)
    each = 1 / job.steps
    return [replace(f, without=f.without.times(each), protected=f.protected.times(each)) for f in figures]


def _decode_work(runner: "_Decoder", steps: Sequence[Sequence[SlotRange]], flush: Flush) -> float:
    return runner.run(steps, flush)


class _Decoder:
    """Runs decode steps as an engine does: launch, hand over to the checkpointer, read the tokens."""

    def __init__(self, model: LlamaRank, job: Decode, runtime: Runtime, stream: Stream, *, graph: bool) -> None:
        self._model, self._job, self._runtime, self._stream = model, job, runtime, stream
        device = runtime.device
        self._tokens = torch.arange(job.sequences, device=device)
        self._positions = torch.zeros(job.sequences, dtype=torch.int64, device=device)
        self._graph: torch.cuda.CUDAGraph | None = None
        with runtime.use(stream):
            for _ in range(3):
                self._launch()
            stream.synchronize()
            if graph and device.type == "cuda":
                self._graph = torch.cuda.CUDAGraph()
                with torch.cuda.graph(self._graph, stream=torch.cuda.current_stream(device)):
                    self._launch()

    def run(self, steps: Sequence[Sequence[SlotRange]], flush: Flush) -> float:
        """Seconds of all `steps`."""
        with self._runtime.use(self._stream):
            self._positions.zero_()
            self._stream.synchronize()
            began = time.perf_counter()
            for number, ranges in enumerate(steps):
                if self._graph is None:
                    self._launch()
                else:
                    self._graph.replay()
                flush(number, ranges)
                self._tokens.cpu()
            return time.perf_counter() - began

    def _launch(self) -> None:
        following = self._model.decode(self._tokens, self._positions, self._job.context)
        self._tokens.copy_(following)
        self._positions.add_(1).remainder_(self._job.context)


def _step_ranges(job: Decode, written: int, step: int) -> list[SlotRange]:
    """The slot that step `step` writes in each sequence; `written` parity blocks a sequence."""
    size = job.rank.cache.block_size
    per_sequence = job.context // size
    block, slot = divmod(step, size)
    return [SlotRange(s * per_sequence + block, 1, s * written + block, slot, slot + 1) for s in range(job.sequences)]


def _model(rank: RankShape, world: World, positions: int) -> LlamaRank:
    cache: CacheShape = rank.cache
    require_device_memory(world.runtime.device, rank.weight_bytes + (2 << 30), f"the weights of {cache.name}")
    model = LlamaRank(rank, world.arenas[0].tensor, positions)
    # Random bytes would be NaN here and there: attention reads numbers.
    model.kv.normal_()
    return model


def _variants(world: World, parity: str) -> tuple[Variant, ...]:
    ranks = world.code.n
    return Variant(f"{parity}, every chunk by this rank", 1), Variant(f"{parity}, one chunk of {ranks}", ranks)
