"""A group of ranks on one device: their caches, and a parity store in host memory that the device writes itself.

The ranks' caches are buffers of one process on one GPU: a flush reads them as it would read its peers' memory over
CUDA IPC, but no link between GPUs is crossed. What is measured is the device's and the host link's part.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from types import TracebackType

import numpy as np
import torch
from numpy.typing import NDArray

from ghostserve.bench.gpu.caches import fill, host, take_slots
from ghostserve.bench.gpu.device import require_device_memory
from ghostserve.bench.gpu.shapes import CacheShape
from ghostserve.bench.gpu.verify import WrongBytesError
from ghostserve.codes import make_code
from ghostserve.codes.backend import Backend
from ghostserve.cuda.arena import DeviceArena
from ghostserve.cuda.runtime import Runtime
from ghostserve.cuda.shards import slot_index
from ghostserve.errors import ConfigError
from ghostserve.parity.geometry import ShardMap, StoreGeometry
from ghostserve.parity.ranges import SlotRange, num_slots, singles
from ghostserve.parity.store import ParityStore

__all__ = ["World"]


class World:
    """`shape.ranks` caches of random bytes and an empty store; `close` gives all of it back."""

    def __init__(
        self,
        runtime: Runtime,
        shape: CacheShape,
        num_blocks: int,
        parity: str,
        *,
        num_parity_blocks: int,
        arenas: Sequence[DeviceArena] = (),
    ) -> None:
        """`arenas`: the caches of another world of this shape, which is closed later; none: new ones are made.

        Raises `DeviceMemoryError` or `MemoryBudgetError` where there is no room, `ConfigError` for parity "none"."""
        code = make_code(parity, shape.ranks)
        if code is None:
            raise ConfigError("parity 'none' leaves nothing to measure")
        self.runtime, self.shape, self.code = runtime, shape, code
        self.layout = shape.layout(num_blocks)
        self.shard_map = ShardMap(shape.ranks, shape.ranks)
        missing = shape.ranks - len(arenas)
        require_device_memory(runtime.device, missing * self.layout.total_bytes, f"{missing} caches of {shape.name}")
        self.closing = ExitStack()
        with ExitStack() as undo:
            geometry = StoreGeometry(code.n, code.k, num_parity_blocks, shape.block_size, self.layout.slot_bytes)
            self.store = ParityStore.create(geometry)
            undo.callback(self.store.close)
            generator = torch.Generator(runtime.device).manual_seed(11)
            self.arenas = list(arenas)
            for _ in range(missing):
                self.arenas.append(DeviceArena.allocate(runtime, self.layout.total_bytes))
                undo.callback(self.arenas[-1].close)
                fill(self.arenas[-1].tensor, generator)
            self.closing = undo.pop_all()

    def check(self, ranges: Sequence[SlotRange], backend: Backend, *, samples: int, committed: bool = True) -> None:
        """Raise `WrongBytesError` unless sampled slots of `ranges` have the CPU's parity and, if committed, records."""
        everything = list(singles(ranges))
        picked = np.random.default_rng(5).choice(len(everything), min(samples, len(everything)), replace=False)
        asked = [everything[i] for i in sorted({0, len(everything) - 1, *picked.tolist()})]
        missing = int((~self.store.committed_slots(asked)).sum())
        if committed and missing:
            raise WrongBytesError(f"{self.code}: {missing} of {len(asked)} slots are not committed")
        index = torch.from_numpy(slot_index(asked)).to(self.runtime.device)
        shards = [host(take_slots(arena.tensor, self.layout, index)) for arena in self.arenas]
        parity: list[NDArray[np.uint8]] = [np.full_like(shards[0], 0x5A) for _ in range(self.code.k)]
        backend.run(self.code.encode_plan, shards, parity)
        for k, right in enumerate(parity):
            wrong = (self.store.parity_shard(asked, k) != right).any(axis=1)
            if wrong.any():
                first = asked[int(np.flatnonzero(wrong)[0])]
                raise WrongBytesError(
                    f"{self.code}: parity shard {k} is wrong in {int(wrong.sum())} of {len(asked)} slots, first {first}"
                )
        if not committed:
            return
        sums = np.stack([backend.checksums(shard) for shard in (*shards, *parity)], axis=1)
        if not np.array_equal(self.store.records(asked), sums):
            raise WrongBytesError(f"{self.code}: recorded checksums of {num_slots(asked)} slots are not the CPU's")

    def close(self) -> None:
        """Nothing may be under way. Idempotent."""
        self.closing.close()

    def __enter__(self) -> "World":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
