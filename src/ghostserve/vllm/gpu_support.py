"""What can't be protected on GPUs only."""

import os
from collections.abc import Mapping
from typing import Any

from ghostserve.vllm.refusal import Refusal, Rule

__all__ = ["GPU_RULES", "unshareable"]

_ALLOCATOR_VARIABLES = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")


def unshareable(environment: Mapping[str, str]) -> str:
    """The part of torch's allocator settings that takes memory which CUDA IPC can't share; empty if there is none."""
    for name in _ALLOCATOR_VARIABLES:
        for field in environment.get(name, "").split(","):
            key, _, value = (part.strip().lower() for part in field.partition(":"))
            if (key, value) in (("expandable_segments", "true"), ("backend", "cudamallocasync")):
                return f"{name}={field.strip()}"
    return ""


def _on_gpu(c: Any) -> bool:
    device = getattr(c, "device_config", None)
    return device is not None and device.device_type == "cuda"


GPU_RULES = (
    Rule(
        Refusal(
            "CUDA graphs",
            "a captured graph holds communicators that a recovery replaces: use --enforce-eager",
        ),
        lambda c: _on_gpu(c) and not c.model_config.enforce_eager,
    ),
    Rule(
        Refusal(
            "expandable segments or cudaMallocAsync",
            "peers can't map such memory by CUDA IPC: take expandable_segments:True and backend:cudaMallocAsync out of"
            " PYTORCH_ALLOC_CONF and PYTORCH_CUDA_ALLOC_CONF",
        ),
        lambda c: _on_gpu(c) and bool(unshareable(os.environ)),
    ),
    Rule(
        Refusal("vLLM's own memory allocator", "peers can't map its memory by CUDA IPC: no --enable-cumem-allocator"),
        lambda c: _on_gpu(c) and c.model_config.enable_cumem_allocator and not c.model_config.enable_sleep_mode,
    ),
)
"""Sleep mode, which switches vLLM's allocator on, is refused everywhere."""
