"""The GPUs that ranks run on: which one, in what environment, and when it has room for a newcomer."""

import logging
import math
import os
import time
from collections.abc import Mapping
from typing import Any

import torch

from ghostserve.cuda.interface import Runtime
from ghostserve.parity.limits import format_bytes
from ghostserve.vllm.config import PluginConfig
from ghostserve.workers.nccl import DEFAULTS, REQUIRED

__all__ = ["await_memory", "environment", "occupy", "switch_off_shortcuts"]

_SHORTCUTS = {
    "VLLM_ALLREDUCE_USE_SYMM_MEM": "0",
    "VLLM_ALLREDUCE_USE_FLASHINFER": "0",
    "VLLM_ALLREDUCE_USE_FLASHINFER_PCIE_IPC": "0",
    "VLLM_USE_NCCL_SYMM_MEM": "0",
    "VLLM_DISTRIBUTED_USE_SPLIT_GROUP": "0",
}
"""Collectives that read peers' memory spin for ever on a dead one, and nothing aborts them: only NCCL's are used."""
_SAME_BITS = {"CUBLAS_WORKSPACE_CONFIG": ":4096:8"}
"""A replay rests on it that the same batch gives the same bits in every process."""
_RECLAIM_SECONDS = 8.0
_POLL_SECONDS = 0.05

log = logging.getLogger("vllm.ghostserve")


def environment(plugin: PluginConfig, world_size: int, given: Mapping[str, str] = os.environ) -> dict[str, str]:
    """What workers on GPUs are started with, over `given`. Raises `ConfigError` if `device_of_rank` doesn't fit."""
    devices = plugin.devices(world_size)
    ours = {name: value for name, value in {**DEFAULTS, **_SAME_BITS}.items() if name not in given}
    shared = {"NCCL_MULTI_RANK_GPU_ENABLE": "1"} if len(set(devices)) < world_size else {}
    return {**ours, **REQUIRED, **_SHORTCUTS, **shared}


def switch_off_shortcuts(vllm_config: Any) -> None:
    """Custom all-reduce reads peers' memory: workers go without. Their environment says the same of the others."""
    if not vllm_config.parallel_config.disable_custom_all_reduce:
        vllm_config.parallel_config.disable_custom_all_reduce = True
        log.info("custom all-reduce is off: it would wait for ever for a worker that died")


def occupy(index: int) -> Runtime:
    """Take GPU `index` for this process: the main thread's stream there is above the flushes', which yield to it.

    vLLM keeps to the stream that it finds, for the model and its collectives. Raises `DeviceUnavailableError` if there
    is no such GPU.
    """
    from ghostserve.cuda.runtime import CudaRuntime

    torch.cuda.set_device(index)
    runtime = CudaRuntime(index)
    torch.cuda.set_stream(runtime.stream())  # type: ignore[arg-type]
    return runtime


def await_memory(runtime: Runtime, share: float, seconds: float = _RECLAIM_SECONDS) -> bool:
    """Wait until `share` of the GPU's memory is free: a dead worker's is reclaimed a little after its end.

    False when it is not after `seconds`; vLLM then says how much is missing.
    """
    until = time.monotonic() + seconds
    while True:
        free, total = runtime.memory()
        needed = math.ceil(total * share)
        if free >= needed:
            return True
        if time.monotonic() >= until:
            log.warning("%s: %s are free, %s are needed", runtime.device, format_bytes(free), format_bytes(needed))
            return False
        time.sleep(_POLL_SECONDS)
