"""Kernels run in Triton's interpreter where there is no GPU: the switch must be set before a kernel is defined."""

import os
import sys
from pathlib import Path

import pytest
import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

# The twin of the CUDA runtime over host memory is theirs.
sys.path.append(str(Path(__file__).parents[1] / "cuda"))


@pytest.fixture
def device():
    """The GPU, or the CPU under the interpreter."""
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")


@pytest.fixture
def runtime(device):
    """The GPU's, or the twin over host memory; nothing of it may be left."""
    if device.type == "cuda":
        from ghostserve.cuda.runtime import CudaRuntime

        yield CudaRuntime(device)
        return
    from fake_runtime import FakeRuntime

    fake = FakeRuntime()
    yield fake
    assert not any(fake.leaks().values()), fake.leaks()
