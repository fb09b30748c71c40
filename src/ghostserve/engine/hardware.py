"""What a worker's rank runs on: its device, its KV cache, its weights and its way to the parity store."""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch

from ghostserve.codes import Code
from ghostserve.engine.communicator import Communicator
from ghostserve.engine.datapath import DataPath, HostDataPath
from ghostserve.engine.launch import WorkerConfig
from ghostserve.engine.model import ShardedModel
from ghostserve.engine.varlen import SDPA
from ghostserve.parity.arena import HostArena
from ghostserve.parity.geometry import StoreGeometry
from ghostserve.parity.memory import SharedRegion
from ghostserve.parity.store import ParityStore
from ghostserve.protect import make_strategy

__all__ = ["CpuHardware", "Hardware", "make_hardware"]


def make_hardware(config: WorkerConfig) -> "Hardware":
    """The hardware that `config.device` names."""
    if config.device == "cuda":
        from ghostserve.engine.cuda import CudaHardware

        return CudaHardware(config)
    return CpuHardware(config)


class Hardware(ABC):
    """Goes through `prepare` (no rank yet), as a standby `warm_up`, `load`, then for each epoch `join`, `attach`, and
    `release` at its end.

    `store` and `path` are None without parity. Everything is called on the worker's main thread.
    """

    attention: str = SDPA

    def __init__(self, config: WorkerConfig) -> None:
        self.config = config
        self.store: ParityStore | None = None
        self.path: DataPath | None = None
        self.code: Code | None = None
        spec, layout = config.spec, config.spec.cache_layout
        strategy = make_strategy(config.protect, config.parity)
        code = strategy.code(spec.shard_map.num_shards)
        if code is not None and config.store_fds:
            geometry = StoreGeometry(code.n, code.k, config.num_parity_blocks, spec.block_size, layout.slot_bytes)
            self.code = code
            self.store = strategy.attach(config.store_fds, geometry)

    def prepare(self, model: ShardedModel, communicator: Communicator) -> None:
        """Whatever can be done before the rank is known: what a standby has behind it is not in a client's pause."""
        return

    @property
    def waits_warm(self) -> bool:
        """Is there more that a standby can do while it waits, in `warm_up`?"""
        return False

    def warm_up(self, model: ShardedModel, communicator: Communicator) -> None:
        """What only a standby has the time for: a worker that begins as a rank gets no call."""
        return

    @abstractmethod
    def load(self, model: ShardedModel, rank: int, communicator: Communicator) -> int:
        """Become `rank`: fill the model with its weights; returns their bytes."""

    @abstractmethod
    def join(self) -> bytes:
        """Have a KV cache; returns the handle by which peers map it, empty where they need none."""

    @abstractmethod
    def cache(self) -> torch.Tensor:
        """This rank's KV cache, uint8, on the model's device; there is one from the first `join` on."""

    def attach(self, handles: Sequence[bytes]) -> None:
        """Map the caches of all ranks (handles in rank order)."""
        return

    def release(self) -> None:
        """Nothing is computed any more, and no flush is under way: let go of the peers' memory."""
        return

    def poison(self, blocks: Sequence[int]) -> None:
        """NaN in every slot of `blocks` of the own cache."""
        whole = self.cache()
        chosen = torch.tensor(blocks, dtype=torch.int64, device=whole.device)
        for s in self.config.spec.cache_layout.segments:
            size = self.config.spec.cache_layout.num_blocks * s.block_stride
            whole[s.offset : s.offset + size].view(-1, s.block_stride).index_fill_(0, chosen, 0xFF)


class CpuHardware(Hardware):
    """All arenas are shared memory that every worker inherits: there is nothing to hand out or to give back."""

    def __init__(self, config: WorkerConfig) -> None:
        super().__init__(config)
        layout = config.spec.cache_layout
        self._arenas = [SharedRegion.attach(fd, layout.total_bytes) for fd in config.arena_fds]
        self._rank = -1
        if self.store is not None and self.code is not None:
            self.path = HostDataPath(
                store=self.store,
                code=self.code,
                arenas=[HostArena(region.array) for region in self._arenas],
                layout=layout,
                shard_map=config.spec.shard_map,
            )

    def load(self, model: ShardedModel, rank: int, communicator: Communicator) -> int:
        self._rank = rank
        return model.load(rank)

    def join(self) -> bytes:
        return b""

    def cache(self) -> torch.Tensor:
        return torch.from_numpy(self._arenas[self._rank].array)
