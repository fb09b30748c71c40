"""The CUDA device that is measured: is there one, has it room, what is it called."""

import gc
import platform
from typing import Any

import torch

from ghostserve.errors import DeviceMemoryError, DeviceUnavailableError, MemoryBudgetError
from ghostserve.parity.limits import available_memory, format_bytes

__all__ = ["cuda_device", "describe", "require_device_memory", "require_host_memory"]


def cuda_device(what: str) -> torch.device:
    """The present CUDA device. Raises `DeviceUnavailableError` where there is none."""
    if not torch.cuda.is_available():
        raise DeviceUnavailableError(
            f"{what} needs a CUDA device, and torch {torch.__version__} finds none on this machine"
            " (a CPU build of torch never does)"
        )
    return torch.device("cuda", torch.cuda.current_device())


def require_device_memory(device: torch.device, needed: int, what: str) -> None:
    """Raise `DeviceMemoryError` unless `needed` bytes are free there; torch first gives back what it only keeps."""
    if device.type != "cuda":
        return
    gc.collect()
    torch.cuda.empty_cache()
    free, total = torch.cuda.mem_get_info(device)
    if needed > free:
        raise DeviceMemoryError(
            f"{what} needs {format_bytes(needed)} of device memory, {format_bytes(free)} of {format_bytes(total)} are"
            " free: stop what else runs there, or use --quick",
            needed=needed,
            available=free,
        )


def require_host_memory(needed: int, what: str) -> None:
    """Raise `MemoryBudgetError` unless the host has `needed` bytes to give."""
    available = available_memory()
    if needed > available:
        raise MemoryBudgetError(
            f"{what} needs {format_bytes(needed)} of host memory, {format_bytes(available)} are available",
            needed=needed,
            available=available,
        )


def describe(device: torch.device) -> dict[str, Any]:
    """What a reader needs to know of the device and the versions that drive it."""
    import triton

    found: dict[str, Any] = {
        "torch": torch.__version__,
        "triton": triton.__version__,
        "python": platform.python_version(),
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        found |= {
            "device": properties.name,
            "memory": format_bytes(properties.total_memory),
            "multiprocessors": properties.multi_processor_count,
            "cuda": torch.version.cuda,
        }
    return found
