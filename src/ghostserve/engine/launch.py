"""What a worker process is started with: everything that is the same for all ranks, as one msgspec struct."""

import os

import msgspec

from ghostserve.engine.modelspec import ModelSpec

__all__ = ["WorkerConfig"]


class WorkerConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Descriptors are those of the worker's own process: inherited, never reopened by name."""

    spec: ModelSpec
    parity: str
    arena_fds: tuple[int, ...]
    store_fd: int | None
    num_parity_blocks: int
    threads: int
    device: str = "cpu"
    devices: tuple[int, ...] = ()
    """The GPU of each rank; empty on the CPU."""
    data_path: str = "host"
    weight_fds: tuple[int, ...] = ()
    """A shared region for each rank's weights; empty where they are read from the files each time."""
    weight_bytes: int = 0
    environment: dict[str, str] = {}
    """What the process is started with beside its parent's."""
    skip_rebuild: bool = False
    """Sabotage for the proof that a comparison can fail: the newcomer keeps its poisoned KV."""

    @staticmethod
    def threads_for(world_size: int) -> int:
        """Compute threads of each of `world_size` workers that share this machine's cores."""
        return max(1, len(os.sched_getaffinity(0)) // world_size)
