"""How vLLM's worker processes are started: forked from a server that has done the imports.

Importing vLLM takes longer than a whole recovery. Python's fork server does it once, in a clean process without
threads, and every worker, standbys too, begins with the imports behind it.
"""

import multiprocessing
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess

from vllm.config import VllmConfig
from vllm.platforms import current_platform
from vllm.utils.ompmultiprocessing import OMPProcessManager

from ghostserve.vllm import messages as msg
from ghostserve.vllm.config import plugin_config
from ghostserve.vllm.process import main
from ghostserve.workers.group import WorkerGroup
from ghostserve.workers.started import Watched

__all__ = ["make_group"]

# gloo's own connections stay on this machine; what torch logs in C++ about a lost peer is no news here.
_ENVIRONMENT = {"GLOO_SOCKET_IFNAME": "lo", "TORCH_CPP_LOG_LEVEL": "FATAL"}
_PRELOAD = [
    "__main__",
    "ghostserve.vllm.process",
    "ghostserve.vllm.worker",
    "torch._inductor.compile_fx",  # vLLM compiles a few small functions on its first step, eager or not
]


def make_group(vllm_config: VllmConfig) -> WorkerGroup[msg.FromWorker]:
    """vLLM's workers, none of them started yet."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOAD)
    cpus: list[list[int]] = []
    if current_platform.is_cpu():
        cpus = list(OMPProcessManager(vllm_config).cpu_lists)
    environment = {**_ENVIRONMENT, **({"OMP_NUM_THREADS": str(len(cpus[0]))} if cpus else {})}
    if current_platform.is_cuda():
        from ghostserve.vllm import devices

        devices.switch_off_shortcuts(vllm_config)
        environment |= devices.environment(plugin_config(vllm_config), vllm_config.parallel_config.world_size)
    launch = partial(_launch, context, vllm_config, cpus, environment)
    return WorkerGroup(launch, msg.FromWorker, msg.Shutdown())


def _launch(
    context: ForkServerContext,
    vllm_config: VllmConfig,
    cpus: list[list[int]],
    environment: dict[str, str],
    channel: socket.socket,
) -> Watched:
    process = context.Process(target=main, args=(vllm_config, channel, cpus), name="ghostserve-worker", daemon=True)
    with _environment(environment):  # the fork server starts with the first process, and its children have its own
        process.start()
    assert process.pid is not None
    return Watched(process.pid, process.kill, partial(_reap, process))


def _reap(process: BaseProcess) -> int | None:
    process.join()
    return process.exitcode


@contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
