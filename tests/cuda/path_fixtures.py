"""Fixtures of the data path's tests: a runtime of each kind, and a world on it that must give everything back."""

import pytest
import torch
from fake_runtime import FakeRuntime
from host_kernels import HostKernels
from lazy_runtime import LazyKernels, LazyRuntime
from path_world import LAYOUT, World


@pytest.fixture
def make_world():
    """`make_world(kind, code, ...)`; kinds: eager, lazy (host kernels), interpreter (Triton's), cuda."""
    made = []

    def make(kind, code="rs:2", kernels=None, **more):
        layout = more.get("layout", LAYOUT)
        if kind == "cuda":
            from ghostserve.cuda.runtime import CudaRuntime

            runtime = CudaRuntime(0)
        elif kind == "lazy":
            runtime = LazyRuntime(deaf=more.pop("deaf", False))
            kernels = kernels or LazyKernels(layout, runtime)
        else:
            if kind == "interpreter" and torch.cuda.is_available():
                pytest.skip("Triton's interpreter is off where there is a GPU")
            runtime = FakeRuntime()
            kernels = kernels or (HostKernels(layout) if kind == "eager" else None)
        world = World(runtime, code, kernels=kernels, **more)
        made.append(world)
        return world

    yield make
    for world in made:
        world.close()
        if isinstance(world.runtime, FakeRuntime):
            assert world.runtime.leaks() == {"malloc": 0, "registered": 0, "mapped": 0}
