"""How a worker process is started, and with what: everything that is the same for all ranks, as one msgspec struct."""

import os
import socket
from collections.abc import Mapping, Sequence
from functools import cache, partial
from types import MappingProxyType

import msgspec

from ghostserve.engine import messages as msg
from ghostserve.engine.modelspec import ModelSpec
from ghostserve.workers.group import WorkerGroup
from ghostserve.workers.nursery import Child, Nursery

__all__ = ["WorkerConfig", "make_group", "nursery"]

# gloo's own connections stay on this machine; what torch logs in C++ about a lost peer is no news here.
_ENVIRONMENT = {"GLOO_SOCKET_IFNAME": "lo", "TORCH_CPP_LOG_LEVEL": "FATAL"}


class WorkerConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Descriptors are those of the process that has it: a worker inherits its own, and reopens none by name."""

    spec: ModelSpec
    protect: str
    parity: str
    arena_fds: tuple[int, ...]
    store_fds: tuple[int, ...]
    """Of the store, as its strategy attaches to it; empty where nothing is kept."""
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

    @property
    def descriptors(self) -> tuple[int, ...]:
        """All of them, in the order in which a worker gets them."""
        return (*self.arena_fds, *self.store_fds, *self.weight_fds)

    def received(self, descriptors: Sequence[int]) -> "WorkerConfig":
        """The same in a process that got `descriptors` under other numbers."""
        numbers = dict(zip(self.descriptors, descriptors, strict=True))

        def new(old: tuple[int, ...]) -> tuple[int, ...]:
            return tuple(numbers[number] for number in old)

        return msgspec.structs.replace(
            self, arena_fds=new(self.arena_fds), store_fds=new(self.store_fds), weight_fds=new(self.weight_fds)
        )

    @staticmethod
    def threads_for(world_size: int) -> int:
        """Compute threads of each of `world_size` workers that share this machine's cores."""
        return max(1, len(os.sched_getaffinity(0)) // world_size)


def nursery(device: str = "cpu", environment: Mapping[str, str] = MappingProxyType({})) -> Nursery:
    """This process's nursery of workers on `device`; all engines that ask for the same share it.

    `environment`: what these workers are started with beside their parent's.
    """
    return _nursery(device, tuple(sorted(environment.items())))


@cache
def _nursery(device: str, environment: tuple[tuple[str, str], ...]) -> Nursery:
    # A library that makes its threads when it is loaded must not: workers set how many they have.
    single = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    prepare = f"ghostserve.engine.prepared:prepare_{device}"
    return Nursery("ghostserve.engine.worker:main", prepare, {**_ENVIRONMENT, **dict(environment), **single})


def make_group(config: WorkerConfig) -> WorkerGroup[msg.FromWorker]:
    """The engine's workers, none of them started yet."""
    launch = partial(_launch, nursery(config.device, config.environment), config)
    return WorkerGroup(launch, msg.FromWorker, msg.Shutdown())


def _launch(born_in: Nursery, config: WorkerConfig, channel: socket.socket) -> Child:
    """Start one worker that talks through `channel`; it inherits that and the descriptors that `config` names."""
    ours = {**_ENVIRONMENT, **config.environment, "OMP_NUM_THREADS": str(config.threads)}
    return born_in.start(
        channel,
        msgspec.msgpack.encode(config),
        descriptors=config.descriptors,
        environment={**os.environb, **{os.fsencode(name): os.fsencode(value) for name, value in ours.items()}},
    )
