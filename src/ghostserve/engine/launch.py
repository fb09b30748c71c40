"""How a worker process is started, and with what: everything that is the same for all ranks, as one msgspec struct."""

import os
import socket
import subprocess
import sys
import tempfile
from functools import partial

import msgspec

from ghostserve.engine import messages as msg
from ghostserve.engine.modelspec import ModelSpec
from ghostserve.workers.group import WorkerGroup

__all__ = ["WorkerConfig", "make_group"]

# gloo's own connections stay on this machine; what torch logs in C++ about a lost peer is no news here.
_ENVIRONMENT = {"GLOO_SOCKET_IFNAME": "lo", "TORCH_CPP_LOG_LEVEL": "FATAL"}


class WorkerConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Descriptors are those of the worker's own process: inherited, never reopened by name."""

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

    @staticmethod
    def threads_for(world_size: int) -> int:
        """Compute threads of each of `world_size` workers that share this machine's cores."""
        return max(1, len(os.sched_getaffinity(0)) // world_size)


class _Popened:
    """A started process, as `WorkerGroup` takes it."""

    def __init__(self, popen: subprocess.Popen[bytes]) -> None:
        self._popen = popen
        self.pid = popen.pid

    def kill(self) -> None:
        self._popen.kill()

    def wait(self, timeout: float | None = None) -> int | None:
        try:
            return self._popen.wait(timeout)
        except subprocess.TimeoutExpired:
            return None


def _launch(config: WorkerConfig, channel: socket.socket) -> _Popened:
    """Start one worker that talks through `channel`; it inherits that and the descriptors that `config` names."""
    with tempfile.TemporaryFile() as file:
        file.write(msgspec.msgpack.encode(config))
        file.seek(0)
        fds = [channel.fileno(), file.fileno()]
        return _Popened(
            subprocess.Popen(
                [sys.executable, "-m", "ghostserve.engine.worker", *map(str, fds), str(os.getpid())],
                stdin=subprocess.DEVNULL,
                pass_fds=[*fds, *config.arena_fds, *config.weight_fds, *config.store_fds],
                env={**os.environ, **_ENVIRONMENT, **config.environment, "OMP_NUM_THREADS": str(config.threads)},
                process_group=0,  # a Ctrl-C at the terminal is the coordinator's to handle, also while this one imports
            )
        )


def make_group(config: WorkerConfig) -> WorkerGroup[msg.FromWorker]:
    """The engine's workers, none of them started yet."""
    return WorkerGroup(partial(_launch, config), msg.FromWorker, msg.Shutdown())
