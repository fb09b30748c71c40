"""A checkpoint of one prefill chunk into the parity store, against the same of copies over the same link.

Copies are held against it twice: as bare as can be (already gathered, not verifiable, committed nowhere), and as the
strategy `replicate-host` keeps them.
"""

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace

import torch

from ghostserve.bench.gpu.beside import BesideFigure, bench_beside
from ghostserve.bench.gpu.matmuls import Matmuls, Step
from ghostserve.bench.gpu.shapes import LLAMA_70B_TP8, CacheShape
from ghostserve.bench.gpu.timing import Clock, Spread, quiet
from ghostserve.bench.gpu.ways import Way, Ways
from ghostserve.bench.gpu.world import World
from ghostserve.codes.cpu import CpuBackend
from ghostserve.cuda.runtime import CudaRuntime, Runtime
from ghostserve.protect import ReplicateHost

__all__ = ["CheckpointFigure", "CheckpointScale", "bench_checkpoint"]


@dataclass(frozen=True)
class CheckpointScale:
    """How much is run; the default is what docs/benchmarks.md shows."""

    shape: CacheShape = LLAMA_70B_TP8
    codes: tuple[str, ...] = ("xor", "rs:2")
    tokens: int = 2048
    chunks: int = 4  # flushed in turns: more bytes than L2 holds
    programs: tuple[int, ...] = (4, 8, 16, 32, 64)
    rounds: int = 15
    samples: int = 64
    matmuls: Matmuls = field(default_factory=Matmuls)
    step: Matmuls = field(default_factory=lambda: Matmuls(count=4))

    @classmethod
    def quick(cls) -> "CheckpointScale":
        return cls(codes=("rs:2",), chunks=2, programs=(16,), rounds=3, samples=16, matmuls=Matmuls(count=8, rounds=2))


@dataclass(frozen=True)
class CheckpointFigure:
    """Seconds on the host's clock, from the call to its return; `in_store`: until the last parity byte was there.

    Of a way behind a step, from the end of the step: it was told when that was launched, as the engine's flushes are.
    `copy_all`: all data shards of the same slots, contiguous, to memory registered alike. `replicate`: a flush of the
    same chunks under `replicate-host`, in the mode that is fastest here. Both begin as the way does.
    """

    shape: str
    code: str
    way: str
    tokens: int
    data_shards: int
    parity_shards: int
    slot_bytes: int
    seconds: Spread
    in_store: Spread | None
    copy_all: Spread
    replicate: Spread

    @property
    def gbps(self) -> float:
        """GB/s of parity."""
        return self.tokens * self.slot_bytes * self.parity_shards / self.seconds.median / 1e9

    @property
    def copy_gbps(self) -> float:
        return self.tokens * self.slot_bytes * self.data_shards / self.copy_all.median / 1e9

    @property
    def faster(self) -> float:
        return self.copy_all.median / self.seconds.median

    @property
    def faster_than_replicate(self) -> float:
        return self.replicate.median / self.seconds.median

    @property
    def limit(self) -> float:
        """What a link allows: bytes against bytes."""
        return self.data_shards / self.parity_shards

    @property
    def aim(self) -> float:
        return {(8, 1): 6.8, (8, 2): 3.6}.get((self.data_shards, self.parity_shards), 0.85 * self.limit)


def bench_checkpoint(
    scale: CheckpointScale, device: torch.device, say: Callable[[str], None], runtime: Runtime | None = None
) -> tuple[list[CheckpointFigure], list[BesideFigure]]:
    """Alone, and beside matrix products. Every way's parity is compared with the CPU's first: `WrongBytesError`."""
    runtime = CudaRuntime(device) if runtime is None else runtime
    backend = CpuBackend()
    backend.warm_up()
    alone: list[CheckpointFigure] = []
    beside: list[BesideFigure] = []
    for parity in scale.codes:
        say(f"{parity}: filling caches, registering the store")
        blocks = scale.shape.blocks(scale.tokens) * scale.chunks
        with ExitStack() as stack:
            world = stack.enter_context(World(runtime, scale.shape, blocks, parity, num_parity_blocks=blocks))
            ways = Ways(world, tokens=scale.tokens, chunks=scale.chunks)
            stack.callback(ways.close)
            copied = stack.enter_context(
                World(runtime, scale.shape, blocks, "copy", num_parity_blocks=blocks, arenas=world.arenas)
            )
            copies = Ways(copied, tokens=scale.tokens, chunks=scale.chunks)
            stack.callback(copies.close)
            step = Step(runtime, scale.step)
            flushes = [*ways.flushes(step), *ways.kernels_alone(scale.programs)]
            replicas = [replace(way, name=f"{ReplicateHost.name}: {way.name}") for way in copies.flushes(step)]
            say(f"{parity}: comparing bytes of {len(flushes) + len(replicas)} ways")
            for at, way in [*((ways, way) for way in flushes), *((copies, way) for way in replicas)]:
                at.check(way, backend, samples=scale.samples)
            alone += _alone(ways, flushes, copies, replicas, (ways.copy_all(), ways.copy_all(step)), scale, say)
            at_once = [way for way in (*flushes, *replicas[-2:]) if way.step is None]
            beside += bench_beside(ways, [ways.copy_all(), *at_once], scale.matmuls, say)
    return alone, beside


def _alone(
    ways: Ways,
    flushes: Sequence[Way],
    copies: Ways,
    replicas: Sequence[Way],
    bare: tuple[Way, Way],
    scale: CheckpointScale,
    say: Callable[[str], None],
) -> list[CheckpointFigure]:
    """`bare`: copying all at once, and behind a step; each way is held against the one that begins as it does."""
    world = ways.world
    every = [*((way, world.code) for way in flushes), *((way, copies.world.code) for way in replicas)]
    say(f"{world.code}: {scale.rounds} rounds of {len(every)} ways and of copying all")
    taken: dict[str, list[float]] = {way.name: [] for way in (*flushes, *replicas, *bare)}
    in_store: dict[str, list[float]] = {way.name: [] for way, _ in every}
    clock = Clock(world.runtime.device)
    with quiet():
        for number in range(-1, scale.rounds):  # round -1 warms up
            for way in (*bare, *flushes, *replicas):
                clock.wait()
                began = time.perf_counter()
                arrived = way.run(number % ways.chunks)
                ended = time.perf_counter()
                if number >= 0:
                    if way.step is not None:
                        began += way.step.seconds()  # it ended then or later: its launch counts as the way's
                    taken[way.name].append(ended - began)
                    if arrived is not None:
                        in_store[way.name].append(arrived - began)

    def fastest(among: Sequence[Way], like: Way) -> Spread:
        spreads = (Spread.of(taken[way.name]) for way in among if way.step is like.step)
        return min(spreads, key=lambda spread: spread.median)

    return [
        CheckpointFigure(
            shape=scale.shape.name,
            code=str(code),
            way=way.name,
            tokens=scale.tokens,
            data_shards=code.n,
            parity_shards=code.k,
            slot_bytes=world.layout.slot_bytes,
            seconds=Spread.of(taken[way.name]),
            in_store=Spread.of(in_store[way.name]) if in_store[way.name] else None,
            copy_all=fastest(bare, way),
            replicate=fastest(replicas, way),
        )
        for way, code in every
    ]
