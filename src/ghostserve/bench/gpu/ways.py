"""The ways out of the device that `bench checkpoint` compares: the data path's flushes, their kernel alone, copies."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from ghostserve.bench.gpu.caches import fill
from ghostserve.bench.gpu.matmuls import Step
from ghostserve.bench.gpu.world import World
from ghostserve.codes.backend import Backend
from ghostserve.cuda.arena import DeviceArena
from ghostserve.cuda.flush import Flusher, FlushMode
from ghostserve.cuda.host import RegisteredRegion
from ghostserve.cuda.kernels import Kernels
from ghostserve.cuda.payload import StorePayload
from ghostserve.cuda.ring import Ring
from ghostserve.cuda.shards import FlatShard, slot_index
from ghostserve.parity.memory import SharedRegion
from ghostserve.parity.ranges import SlotRange

__all__ = ["Way", "Ways"]

EPOCH = 1
_BEHIND = "behind a step"
_MODES: tuple[FlushMode, ...] = ("ring", "zero-copy", "auto")

Chunks = list[list[SlotRange]]


@dataclass(frozen=True)
class Way:
    """`run(chunk)` returns when the bytes have arrived (and, for a flush, are committed).

    It gives the time (`perf_counter`) at which the last parity byte was in the store, or None where that is the end.
    `step`: what `run` launches first and works behind, None: nothing; its seconds are not the way's.
    """

    name: str
    run: Callable[[int], float | None]
    chunks: Chunks
    commits: bool
    step: Step | None = None


class Ways:
    """Everything over the same chunks of whole blocks, which lie scattered over the caches.

    `ranges`: the parity blocks of a chunk follow each other in the store; `scattered`: they are anywhere, too.
    """

    def __init__(self, world: World, *, tokens: int, chunks: int) -> None:
        self.world, self.chunks = world, chunks
        self._open = ExitStack()
        blocks, size = world.shape.blocks(tokens), world.shape.block_size
        places = np.random.default_rng(2).permutation(world.layout.num_blocks)[: blocks * chunks].tolist()
        runs = [range(chunk * blocks, (chunk + 1) * blocks) for chunk in range(chunks)]
        self.ranges: Chunks = [[SlotRange(places[at], 1, at, 0, size) for at in run] for run in runs]
        self.scattered: Chunks = [[SlotRange(places[at], 1, places[at], 0, size) for at in run] for run in runs]
        runtime = world.runtime
        with ExitStack() as undo:
            self._payload = StorePayload(runtime, world.store)
            undo.callback(self._payload.close)
            self._kernels = Kernels(world.layout, runtime.device)
            self._ring = undo.enter_context(Ring(runtime))
            self._stream = runtime.stream(low_priority=True)
            self._everything = blocks * size * world.layout.slot_bytes * world.code.n
            self._open = undo.pop_all()

    def flushes(self, step: Step) -> Iterator[Way]:
        """The data path's own, in each of its modes; the last one behind `step`, as the engine's flushes are."""
        for mode in _MODES:
            flusher = Flusher(
                runtime=self.world.runtime,
                kernels=self._kernels,
                ring=self._ring,
                store=self.world.store,
                payload=self._payload,
                code=self.world.code,
                layout=self.world.layout,
                mode=mode,
            )
            flusher.connect([arena.shard(self.world.layout) for arena in self.world.arenas])
            yield Way(f"flush, {mode}", self._flush(flusher, self.ranges), self.ranges, commits=True)
            if mode == "ring":
                run = self._flush(flusher, self.scattered)
                yield Way(f"flush, {mode}, parity scattered", run, self.scattered, commits=True)
            if mode == "auto":
                run = self._flush(flusher, self.ranges, step)
                yield Way(f"flush, {mode}, {_BEHIND}", run, self.ranges, commits=True, step=step)

    def _flush(self, flusher: Flusher, chunks: Chunks, step: Step | None = None) -> Callable[[int], float | None]:
        arrived = [0.0]

        def on_stage(stage: str) -> None:
            if stage == "encoded":
                arrived[0] = time.perf_counter()

        def run(chunk: int) -> float | None:
            flusher.encode(EPOCH, chunks[chunk], step.launch() if step else None, on_stage)
            return arrived[0]

        return run

    def kernels_alone(self, programs: Sequence[int]) -> Iterator[Way]:
        """The encode kernel that writes to the store itself, with so many thread blocks; commits nothing."""
        world = self.world
        row_bytes = world.code.k * world.layout.slot_bytes
        parity = [
            FlatShard(world.store.payload_address + k * world.layout.slot_bytes, row_bytes) for k in range(world.code.k)
        ]
        shards = [arena.shard(world.layout) for arena in world.arenas]
        bound = self._kernels.bind(world.code.encode_plan, [*shards, *parity])
        device = world.runtime.device
        indices = [
            torch.from_numpy(slot_index(ranges, world.store.store_rows(ranges))).to(device) for ranges in self.ranges
        ]
        sums = torch.zeros((len(indices[0]), len(shards) + len(parity)), dtype=torch.int64, device=device)

        def runner(limit: int) -> Callable[[int], float | None]:
            def run(chunk: int) -> float | None:
                with world.runtime.use(self._stream):
                    sums.zero_()
                    bound.launch(indices[chunk], len(indices[chunk]), sums, programs=limit)
                self._stream.synchronize()
                return None

            return run

        for limit in programs:
            yield Way(f"kernel alone, zero-copy, {limit} blocks", runner(limit), self.ranges, commits=False)

    def copy_all(self, step: Step | None = None) -> Way:
        """All data shards of a chunk, already gathered: what copying the cache out would cost at best."""
        stream, runtime = self._stream, self.world.runtime
        source, target = self._gathered

        def run(chunk: int) -> float | None:
            if step:
                stream.wait_event(step.launch())
            for address, nbytes in target.split(target.address, target.nbytes):
                runtime.copy(address, source.address + address - target.address, nbytes, stream)
            stream.synchronize()
            return None

        name = f"copy all shards, {_BEHIND}" if step else "copy all shards"
        return Way(name, run, self.ranges, commits=False, step=step)

    @cached_property
    def _gathered(self) -> tuple[DeviceArena, RegisteredRegion]:
        runtime = self.world.runtime
        source = self._open.enter_context(DeviceArena.allocate(runtime, self._everything))
        fill(source.tensor, torch.Generator(runtime.device).manual_seed(9))
        region = self._open.enter_context(SharedRegion.create("ghostserve-bench", self._everything))
        return source, self._open.enter_context(RegisteredRegion(runtime, region))

    def check(self, way: Way, backend: Backend, *, samples: int) -> None:
        """Flush every chunk over poison, and compare with the CPU. Raises `WrongBytesError`."""
        for chunk, ranges in enumerate(way.chunks):
            self.world.store.begin(EPOCH, ranges)
            for r in ranges:
                self.world.store.payload(r)[:] = 0xA5
            way.run(chunk)
            self.world.check(ranges, backend, samples=samples, committed=way.commits)

    def close(self) -> None:
        self._open.close()
