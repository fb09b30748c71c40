"""Backends under test, each compiled once per session."""

import pytest

from ghostserve.codes.cpu import CpuBackend
from ghostserve.codes.cpu_kernels import has_affine


@pytest.fixture(scope="session", params=["affine", "horner"])
def backend(request: pytest.FixtureRequest) -> CpuBackend:
    if request.param == "affine" and not has_affine():
        pytest.skip("this CPU has no GFNI with AVX-512")
    result = CpuBackend(request.param)
    result.warm_up()
    return result
