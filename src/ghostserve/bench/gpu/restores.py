"""One context on one rank: what checkpoints it, what brings it back when the rank is lost; timed and compared."""

import time
from contextlib import ExitStack
from types import TracebackType

import torch

from ghostserve.bench.gpu.device import require_device_memory
from ghostserve.bench.gpu.llama import LlamaRank, RankShape
from ghostserve.bench.gpu.timing import Clock
from ghostserve.bench.gpu.verify import WrongBytesError
from ghostserve.bench.gpu.world import World
from ghostserve.codes.backend import Backend
from ghostserve.cuda.arena import DeviceArena
from ghostserve.cuda.host import RegisteredRegion
from ghostserve.cuda.path import CudaDataPath
from ghostserve.parity.memory import SharedRegion
from ghostserve.parity.ranges import SlotRange
from ghostserve.recovery.rebuild import RebuildReport

__all__ = ["LOST", "Restores"]

LOST = 0
"""The rank that computes, and is lost."""
_EPOCH = 1
_WIPED = 0xFF  # NaN in every floating-point type


class Restores:
    """A context of `tokens` tokens that fills the caches of `world`; every method but `close` gives seconds.

    A context manager. What is timed has ended when its method returns: bytes committed, or in place.
    """

    def __init__(self, world: World, rank: RankShape, *, tokens: int, chunk: int, backend: Backend) -> None:
        """Pins host memory for copies of all shards. Raises `DeviceMemoryError` or `MemoryBudgetError`."""
        self.world, self.tokens, self._chunk, self._backend = world, tokens, chunk, backend
        runtime, size = world.runtime, world.layout.total_bytes
        self._stream = runtime.stream()
        self._clock = Clock(runtime.device)
        blocks, slots = world.layout.num_blocks, world.shape.block_size
        self.ranges = [SlotRange(block, 1, block, 0, slots) for block in range(blocks)]
        step = chunk // slots
        self._chunks = [self.ranges[first : first + step] for first in range(0, blocks, step)]
        require_device_memory(
            runtime.device, rank.weight_bytes + 2 * size, f"weights of {rank.cache.name} and a copy to compare with"
        )
        with ExitStack() as undo:
            self.path = CudaDataPath(
                runtime=runtime,
                store=world.store,
                code=world.code,
                layout=world.layout,
                shard_map=world.shard_map,
                backend=backend,
            )
            undo.callback(self.path.close)
            self.path.connect(LOST, world.arenas)
            self.path.warm_up((LOST,), (LOST,))
            self._landing = undo.enter_context(DeviceArena.allocate(runtime, size))
            self.copies = undo.enter_context(SharedRegion.create("ghostserve-bench-copies", size * world.shape.ranks))
            self._pinned = undo.enter_context(RegisteredRegion(runtime, self.copies))
            self.model = LlamaRank(rank, self._lost.tensor, positions=tokens)
            self._ids = torch.randint(0, rank.vocabulary, (tokens,), device=runtime.device)
            self._original = torch.empty(0)
            self._open = undo.pop_all()

    @property
    def _lost(self) -> DeviceArena:
        return self.world.arenas[LOST]

    def prefill(self) -> float:
        """Compute the context, chunk by chunk."""
        self._clock.wait()
        with self.world.runtime.use(self._stream):
            began = time.perf_counter()
            for start in range(0, self.tokens, self._chunk):
                self.model.prefill(self._ids[start : start + self._chunk], start)
            self._stream.synchronize()
            return time.perf_counter() - began

    def remember(self) -> None:
        """What the lost cache holds now is what everything must bring back."""
        self._original = self._lost.tensor.clone()

    def flush(self) -> float:
        """Parity of every chunk into the store, one after the other, as a prefill hands them out."""
        self._clock.wait()
        began = time.perf_counter()
        for chunk in self._chunks:
            self.path.encode(_EPOCH, chunk, None, lambda stage: None)
        return time.perf_counter() - began

    def copy_out(self) -> float:
        """All shards to the host, each in one piece and without checksums: what a copy costs at best."""
        self._clock.wait()
        began = time.perf_counter()
        for rank, arena in enumerate(self.world.arenas):
            self._copy(rank, arena, out=True)
        self._stream.synchronize()
        return time.perf_counter() - began

    def copy_back(self) -> float:
        """The lost shard from its copy, into a wiped cache; compared."""
        self._wipe()
        began = time.perf_counter()
        self._copy(LOST, self._lost, out=False)
        self._stream.synchronize()
        seconds = time.perf_counter() - began
        self._require_original("copied back")
        return seconds

    def rebuild(self) -> float:
        """The lost shard from parity and survivors, into a wiped cache, verified; compared."""
        self._wipe()
        began = time.perf_counter()
        report = self.path.rebuild((LOST,), self.ranges, (LOST,))
        seconds = time.perf_counter() - began
        self._require_whole(report)
        self._require_original("rebuilt")
        return seconds

    def recompute(self) -> tuple[float, float]:
        """Seconds of the prefill into a wiped cache, and the share of its bytes that came out otherwise.

        Other bits are no fault: the same kernels need not round alike twice. A slot that nobody wrote is:
        `WrongBytesError`.
        """
        self._wipe()
        seconds = self.prefill()
        found, original = (tensor.view(-1, self._row_bytes) for tensor in (self._lost.tensor, self._original))
        unwritten = int(((found == _WIPED).all(dim=1) & ~(original == _WIPED).all(dim=1)).sum())
        if unwritten:
            raise WrongBytesError(f"{self._what}: a prefill left {unwritten} rows of the wiped cache as they were")
        return seconds, int(torch.count_nonzero(found != original)) / found.numel()

    def check_kept(self, *, samples: int) -> None:
        """Raise `WrongBytesError` unless `samples` slots have the CPU's parity, every copy its shard's bytes."""
        self.world.check(self.ranges, self._backend, samples=samples)
        for rank, arena in enumerate(self.world.arenas):
            self._copy(rank, self._landing, out=False)
            self._stream.synchronize()
            if not torch.equal(self._landing.tensor, arena.tensor):
                raise WrongBytesError(f"{self._what}: the copy of rank {rank} is not what its cache holds")

    def close(self) -> None:
        """Nothing may be under way. Idempotent."""
        self._open.close()

    @property
    def _what(self) -> str:
        return f"{self.world.code}, {self.tokens} tokens"

    @property
    def _row_bytes(self) -> int:
        return self.world.layout.segments[0].nbytes

    def _copy(self, rank: int, arena: DeviceArena, *, out: bool) -> None:
        first = self._pinned.address + rank * arena.nbytes
        pieces = [(host, arena.address + host - first, size) for host, size in self._pinned.split(first, arena.nbytes)]
        wanted = [(host, device, size) if out else (device, host, size) for host, device, size in pieces]
        self.world.runtime.copy_many(wanted, self._stream)

    def _wipe(self) -> None:
        self._clock.wait()
        self.world.runtime.fill(self._lost.address, _WIPED, self._lost.nbytes, self._stream)
        self._stream.synchronize()

    def _require_whole(self, report: RebuildReport) -> None:
        if report.failed or report.damaged or report.corrected or report.bytes_rebuilt != self._lost.nbytes:
            raise WrongBytesError(
                f"{self._what}: {report.bytes_rebuilt} of {self._lost.nbytes} bytes were rebuilt, {len(report.failed)}"
                f" ranges were not, {len(report.damaged)} are damaged, {len(report.corrected)} had to be corrected;"
                f" first reason: {(*report.reasons, 'none')[0]}"
            )

    def _require_original(self, how: str) -> None:
        if not torch.equal(self._lost.tensor, self._original):
            raise WrongBytesError(f"{self._what}: the cache of rank {LOST}, {how}, is not what it was")

    def __enter__(self) -> "Restores":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
