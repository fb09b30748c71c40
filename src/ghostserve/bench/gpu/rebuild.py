"""Rebuilding lost ranks' caches from the parity store, against copying as many bytes to the device."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ghostserve.bench.gpu.device import require_device_memory
from ghostserve.bench.gpu.shapes import LLAMA_70B_TP8, CacheShape
from ghostserve.bench.gpu.timing import Clock, Spread, quiet
from ghostserve.bench.gpu.verify import WrongBytesError
from ghostserve.bench.gpu.world import World
from ghostserve.codes.cpu import CpuBackend
from ghostserve.cuda.arena import DeviceArena
from ghostserve.cuda.host import PIECE_BYTES
from ghostserve.cuda.path import CudaDataPath, MappedArena
from ghostserve.cuda.runtime import CudaRuntime, Runtime
from ghostserve.parity.ranges import SlotRange
from ghostserve.recovery.rebuild import RebuildReport

__all__ = ["RebuildFigure", "RebuildScale", "bench_rebuild"]

_EPOCH = 1
_WIPED = 0xFF  # NaN in every floating-point type
_CHUNK_BLOCKS = 128
_ROOM = (4, 3)  # cache and store have four blocks for three that are rebuilt


@dataclass(frozen=True)
class RebuildScale:
    """How much is run; the default is what docs/benchmarks.md shows. `cases`: a code, and the ranks that are lost."""

    shape: CacheShape = LLAMA_70B_TP8
    tokens: int = 65_536
    cases: tuple[tuple[str, tuple[int, ...]], ...] = (("xor", (3,)), ("rs:2", (3,)), ("rs:2", (3, 6)))
    rounds: int = 7
    samples: int = 64

    @classmethod
    def quick(cls) -> "RebuildScale":
        return cls(tokens=4096, cases=(("rs:2", (3,)), ("rs:2", (3, 6))), rounds=2, samples=16)


@dataclass(frozen=True)
class RebuildFigure:
    """Seconds from the call to verified bytes in place; `copy`: of `parity_bytes` from the same memory to the device.

    `order`: whether the sequence's blocks follow each other in cache and store, or lie anywhere, in any order, with
    those of others in between.
    """

    shape: str
    code: str
    lost: tuple[int, ...]
    order: str
    tokens: int
    parity_bytes: int
    rebuilt_bytes: int
    seconds: Spread
    copy: Spread

    @property
    def gbps(self) -> float:
        """GB/s of parity."""
        return self.parity_bytes / self.seconds.median / 1e9

    @property
    def ceiling_gbps(self) -> float:
        return self.parity_bytes / self.copy.median / 1e9

    @property
    def of_ceiling(self) -> float:
        return self.gbps / self.ceiling_gbps


def bench_rebuild(
    scale: RebuildScale, device: torch.device, say: Callable[[str], None], runtime: Runtime | None = None
) -> list[RebuildFigure]:
    """Each rebuild is compared byte by byte with what was lost: raises `WrongBytesError` where they differ."""
    runtime = CudaRuntime(device) if runtime is None else runtime
    backend = CpuBackend()
    backend.warm_up()
    figures: list[RebuildFigure] = []
    for parity in dict.fromkeys(parity for parity, _ in scale.cases):
        lost = [ranks for code, ranks in scale.cases if code == parity]
        say(f"{parity}: filling caches, registering the store")
        blocks = scale.shape.blocks(scale.tokens)
        room = blocks * _ROOM[0] // _ROOM[1]
        with World(runtime, scale.shape, room, parity, num_parity_blocks=room) as world:
            path = CudaDataPath(
                runtime=runtime,
                store=world.store,
                code=world.code,
                layout=world.layout,
                shard_map=world.shard_map,
                backend=backend,
            )
            try:
                path.connect(0, world.arenas)
                figures += _Rebuilds(world, path, scale, say).figures(lost, backend)
            finally:
                path.close()
    return figures


class _Rebuilds:
    """All rebuilds of one code."""

    def __init__(self, world: World, path: CudaDataPath, scale: RebuildScale, say: Callable[[str], None]) -> None:
        self.world, self.path, self.scale, self.say = world, path, scale, say
        count, size = scale.shape.blocks(scale.tokens), world.shape.block_size
        self.everything = [SlotRange(block, 1, block, 0, size) for block in range(world.layout.num_blocks)]
        places = np.random.default_rng(6).permutation(len(self.everything))[:count]
        self.orders = {
            "in order": self.everything[:count],
            "scattered": [self.everything[place] for place in places],
        }
        self.stream = world.runtime.stream()
        self.clock = Clock(world.runtime.device)

    def figures(self, cases: Sequence[tuple[int, ...]], backend: CpuBackend) -> list[RebuildFigure]:
        world = self.world
        self.say(f"{world.code}: encoding {self.scale.tokens:,} tokens")
        everything = self.everything
        for first in range(0, len(everything), _CHUNK_BLOCKS):
            self.path.encode(_EPOCH, everything[first : first + _CHUNK_BLOCKS], None, lambda stage: None)
        world.check(everything, backend, samples=self.scale.samples)
        most = max(len(lost) for lost in cases)
        size = self.scale.tokens * world.layout.slot_bytes
        needed = most * (world.layout.total_bytes + size)
        require_device_memory(world.runtime.device, needed, "copies to compare with")
        figures = []
        for lost in cases:
            originals = [world.arenas[rank].tensor.clone() for rank in lost]
            self.path.warm_up(lost, lost)
            with DeviceArena.allocate(world.runtime, len(lost) * size) as landing:
                for order, ranges in self.orders.items():
                    figures.append(self._measure(lost, order, ranges, originals, landing))
        return figures

    def _measure(
        self,
        lost: tuple[int, ...],
        order: str,
        ranges: Sequence[SlotRange],
        originals: Sequence[torch.Tensor],
        landing: MappedArena,
    ) -> RebuildFigure:
        self.say(f"{self.world.code}: lost {list(lost)}, {order}: {self.scale.rounds} rounds")
        taken, copied = [], []
        with quiet():
            for number in range(-1, self.scale.rounds):  # round -1 warms up
                self._wipe(lost, ranges)
                began = time.perf_counter()
                report = self.path.rebuild(lost, ranges, lost)
                seconds = time.perf_counter() - began
                self._check(lost, report, originals)
                copy = self._copy(landing)
                if number >= 0:
                    taken.append(seconds)
                    copied.append(copy)
        return RebuildFigure(
            shape=self.world.shape.name,
            code=str(self.world.code),
            lost=lost,
            order=order,
            tokens=self.scale.tokens,
            parity_bytes=landing.nbytes,
            rebuilt_bytes=report.bytes_rebuilt,
            seconds=Spread.of(taken),
            copy=Spread.of(copied),
        )

    def _wipe(self, lost: Sequence[int], ranges: Sequence[SlotRange]) -> None:
        layout = self.world.layout
        blocks = torch.tensor([r.block for r in ranges], device=self.world.runtime.device)
        for rank in lost:
            rows = self.world.arenas[rank].tensor.view(len(layout.segments), layout.num_blocks, -1)
            rows.index_fill_(1, blocks, _WIPED)
        self.clock.wait()

    def _copy(self, landing: MappedArena) -> float:
        """Seconds of bringing as many bytes of the store's payload to the device."""
        self.clock.wait()
        began = time.perf_counter()
        # A store that was registered in pieces is copied piece by piece.
        for first in range(0, landing.nbytes, PIECE_BYTES):
            size = min(PIECE_BYTES, landing.nbytes - first)
            source = self.world.store.payload_address + first
            self.world.runtime.copy(landing.address + first, source, size, self.stream)
        self.stream.synchronize()
        return time.perf_counter() - began

    def _check(self, lost: Sequence[int], report: RebuildReport, originals: Sequence[torch.Tensor]) -> None:
        what = f"{self.world.code}, lost {list(lost)}"
        if report.failed or report.damaged or report.corrected:
            raise WrongBytesError(
                f"{what}: {len(report.failed)} ranges were not rebuilt, {len(report.damaged)} are damaged,"
                f" {len(report.corrected)} had to be corrected; first reason: {(*report.reasons, 'none')[0]}"
            )
        expected = len(lost) * self.scale.tokens * self.world.layout.slot_bytes
        if report.bytes_rebuilt != expected:
            raise WrongBytesError(f"{what}: {report.bytes_rebuilt} bytes were rebuilt, {expected} were lost")
        for rank, original in zip(lost, originals, strict=True):
            if not torch.equal(self.world.arenas[rank].tensor, original):
                raise WrongBytesError(f"{what}: the rebuilt cache of rank {rank} is not what it was")
