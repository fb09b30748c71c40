"""Where the ranks run, decided once before anything starts: CPU or which GPUs, over which data path, and why."""

import os
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from ghostserve.engine.config import EngineConfig
from ghostserve.engine.dryrun import rank_weight_bytes
from ghostserve.engine.exchange import exchange_bytes
from ghostserve.engine.modelspec import ModelSpec
from ghostserve.errors import ConfigError, GhostServeError

__all__ = ["CPU", "Placement", "place"]

# Matrix products must give the same bits for the same batch, also in a process that has done other things before.
_CUDA_ENVIRONMENT = {"CUBLAS_WORKSPACE_CONFIG": ":4096:8", "NVIDIA_TF32_OVERRIDE": "0"}
RING_BYTES = 64 << 20


@dataclass(frozen=True)
class Placement:
    """`device` "cpu" or "cuda"; `devices[rank]` the GPU of a rank (empty on the CPU).

    `data_path`: "host", "cuda-ipc" or "cuda-staged". `reasons` are sentences for the status. `environment` is what
    every worker is started with.
    """

    device: str
    devices: tuple[int, ...]
    data_path: str
    reasons: tuple[str, ...]
    environment: dict[str, str] = field(default_factory=dict)


CPU = Placement("cpu", (), "host", ())


def place(config: EngineConfig, spec: ModelSpec, *, gather: Callable[[], object] | None = None) -> Placement:
    """Decide. `gather` gives the machine's `Facts`; by default they come from a short-lived process of their own.

    The coordinator itself must not touch a GPU: a context costs 500 MiB there. Raises `ConfigError` if `device` is
    "cuda" and that can't be, or if it is "auto" and there is a GPU which can't run this many ranks.
    """
    if config.device == "cpu":
        return Placement("cpu", (), "host", ("the device was set to cpu",))
    if config.device == "auto" and torch.version.cuda is None and gather is None:
        return Placement("cpu", (), "host", (f"torch {torch.__version__} is built without CUDA",))
    try:
        from ghostserve.cuda.probe import Facts, choose_devices, gather_facts_apart
    except ImportError as error:
        if config.device == "auto":
            return Placement("cpu", (), "host", (f"the GPU packages are missing: {error}",))
        raise ConfigError(f"device 'cuda' needs the extra ghostserve[cuda]: {error}") from error
    facts = (gather or gather_facts_apart)()
    assert isinstance(facts, Facts)
    if config.device == "auto" and (facts.problem is not None or not facts.devices):
        return Placement("cpu", (), "host", (f"no GPU is usable: {facts.problem or 'none is visible'}",))
    strategy = config.strategy
    if config.scrub_rate:
        raise ConfigError(
            f"scrub_rate {config.scrub_rate} works on the CPU only (on CUDA a rebuild verifies what it reads):"
            " set it to 0"
        )
    kept = strategy.code(spec.shard_map.num_shards) is not None
    if kept:
        _check_kernels(config, spec)
    needed = rank_weight_bytes(spec) + spec.cache_layout.total_bytes
    needed += RING_BYTES if kept else 0
    if len(facts.devices) < spec.tensor_parallel_size:
        needed += exchange_bytes(spec.tensor_parallel_size)
    try:
        choice = choose_devices(facts, spec.tensor_parallel_size, needed)
    except GhostServeError as error:
        if config.device == "auto":
            raise ConfigError(f"{error} (device is auto, and there is a GPU: or set it to cpu)") from error
        raise
    path, reasons = choice.path, choice.reasons
    if not kept:
        path = "none"
    elif config.data_path == "cuda-ipc" != path:
        raise ConfigError(f"data_path 'cuda-ipc' can't be had here: {reasons[-1]}; allowed: auto, cuda-staged")
    elif config.data_path != "auto":
        path, reasons = config.data_path, (*reasons, f"the data path was set to {config.data_path}")
    if kept:
        reasons = (*reasons, f"protect {strategy.name}: kept in {strategy.medium}")
    return Placement("cuda", choice.devices, path, reasons, _environment(choice.environment))


def _check_kernels(config: EngineConfig, spec: ModelSpec) -> None:
    """Raise `UnsupportedCodeError` where the GPU's kernels don't serve this code over this cache."""
    from ghostserve.cuda.shards import Units

    code = config.strategy.code(spec.shard_map.num_shards)
    if code is not None:
        Units(spec.cache_layout, code.encode_plan.rows)


def _environment(chosen: dict[str, str]) -> dict[str, str]:
    from ghostserve.workers.nccl import DEFAULTS, REQUIRED

    ours = {**DEFAULTS, **_CUDA_ENVIRONMENT}
    return {**{k: v for k, v in ours.items() if k not in os.environ}, **REQUIRED, **chosen}
