"""Checkpoint and recovery against context length: parity, a copy of all shards, and computing the context again.

One rank of a model prefills the context, its peers are buffers on the same GPU. Parity and copies go over the one link
that there is; on a host of N GPUs each has its own, which makes both N times faster.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from ghostserve.bench.gpu.llama import RANK_8B_TP8, RANK_70B_TP8, RankShape
from ghostserve.bench.gpu.restores import Restores
from ghostserve.bench.gpu.timing import Spread, quiet
from ghostserve.bench.gpu.world import World
from ghostserve.codes.cpu import CpuBackend
from ghostserve.cuda.runtime import CudaRuntime, Runtime

__all__ = ["ContextFigure", "ContextScale", "bench_contexts"]


@dataclass(frozen=True)
class ContextScale:
    """How much is run; the default is what docs/benchmarks.md shows. `chunk`: tokens of one prefill step and flush."""

    ranks: tuple[RankShape, ...] = (RANK_8B_TP8, RANK_70B_TP8)
    codes: tuple[str, ...] = ("xor", "rs:2")
    contexts: tuple[int, ...] = (4096, 16_384, 65_536)
    chunk: int = 2048
    rounds: int = 7
    recomputes: int = 3
    samples: int = 64

    @classmethod
    def quick(cls) -> "ContextScale":
        few = replace(RANK_8B_TP8, cache=replace(RANK_8B_TP8.cache, name="Llama-3-8B TP 8, 4 layers", layers=4))
        return cls(ranks=(few,), contexts=(1024, 4096), chunk=1024, rounds=2, recomputes=1, samples=16)


@dataclass(frozen=True)
class ContextFigure:
    """Seconds on the host's clock, of a whole context and all its ranks' shards, until they are committed or there.

    `copy_all`, `copy_back`: all shards to registered host memory, and the lost one back. `other_bits`: the share of the
    lost shard's bytes that computing it again (`recompute`, without all-reduces) gave otherwise.
    """

    shape: str
    code: str
    tokens: int
    data_shards: int
    parity_shards: int
    slot_bytes: int
    checkpoint: Spread
    copy_all: Spread
    rebuild: Spread
    copy_back: Spread
    recompute: Spread
    other_bits: float

    @property
    def cache_bytes(self) -> int:
        """Of all shards: what copying them takes of the host."""
        return self.tokens * self.slot_bytes * self.data_shards

    @property
    def parity_bytes(self) -> int:
        return self.tokens * self.slot_bytes * self.parity_shards

    @property
    def faster(self) -> float:
        """A checkpoint by parity, against copying all shards."""
        return self.copy_all.median / self.checkpoint.median

    @property
    def limit(self) -> float:
        return self.data_shards / self.parity_shards

    @property
    def against_recompute(self) -> float:
        """How much faster a rebuild is."""
        return self.recompute.median / self.rebuild.median


def bench_contexts(
    scale: ContextScale, device: torch.device, say: Callable[[str], None], runtime: Runtime | None = None
) -> list[ContextFigure]:
    """All bytes are compared first, and what comes back each time: `WrongBytesError` where one differs."""
    runtime = CudaRuntime(device) if runtime is None else runtime
    backend = CpuBackend()
    backend.warm_up()
    return [
        _figure(rank, parity, tokens, scale, runtime, backend, say)
        for rank in scale.ranks
        for tokens in scale.contexts
        for parity in scale.codes
    ]


def _figure(
    rank: RankShape,
    parity: str,
    tokens: int,
    scale: ContextScale,
    runtime: Runtime,
    backend: CpuBackend,
    say: Callable[[str], None],
) -> ContextFigure:
    what = f"{rank.cache.name}, {tokens:,} tokens, {parity}"
    say(f"{what}: weights, caches, store and room for copies")
    blocks = rank.cache.blocks(tokens)
    with (
        World(runtime, rank.cache, blocks, parity, num_parity_blocks=blocks) as world,
        Restores(world, rank, tokens=tokens, chunk=scale.chunk, backend=backend) as ways,
    ):
        ways.prefill()
        ways.remember()
        say(f"{what}: comparing bytes")
        ways.flush()
        ways.copy_out()
        ways.check_kept(samples=scale.samples)
        say(f"{what}: {scale.rounds} rounds of checkpoints and restores, {scale.recomputes} prefills")
        taken: dict[str, list[float]] = {name: [] for name in ("copy_all", "checkpoint", "copy_back", "rebuild")}
        again, other = [], []
        with quiet():
            for number in range(-1, scale.rounds):  # round -1 warms up
                seconds = {
                    "copy_all": ways.copy_out(),
                    "checkpoint": ways.flush(),
                    "copy_back": ways.copy_back(),
                    "rebuild": ways.rebuild(),
                }
                for name, value in seconds.items():
                    if number >= 0:
                        taken[name].append(value)
            for _ in range(scale.recomputes):
                value, share = ways.recompute()
                again.append(value)
                other.append(share)
        return ContextFigure(
            shape=rank.cache.name,
            code=str(world.code),
            tokens=tokens,
            data_shards=world.code.n,
            parity_shards=world.code.k,
            slot_bytes=world.layout.slot_bytes,
            checkpoint=Spread.of(taken["checkpoint"]),
            copy_all=Spread.of(taken["copy_all"]),
            rebuild=Spread.of(taken["rebuild"]),
            copy_back=Spread.of(taken["copy_back"]),
            recompute=Spread.of(again),
            other_bits=max(other),
        )
