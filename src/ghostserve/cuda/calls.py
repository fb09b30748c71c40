"""Calls into CUDA that either work or raise: every binding returns a tuple whose first item is an error code."""

from enum import Enum
from typing import Any

from cuda.bindings import runtime as cudart

from ghostserve.errors import CudaError

__all__ = ["check", "failed", "result"]

# After these the process's context on the device is dead: every later call fails the same way.
_FATAL = frozenset(
    {
        "cudaErrorIllegalAddress",
        "cudaErrorMisalignedAddress",
        "cudaErrorLaunchFailure",
        "cudaErrorLaunchTimeout",
        "cudaErrorHardwareStackError",
        "cudaErrorIllegalInstruction",
        "cudaErrorInvalidAddressSpace",
        "cudaErrorInvalidPc",
        "cudaErrorAssert",
        "cudaErrorECCUncorrectable",
        "cudaErrorNvlinkUncorrectable",
        "cudaErrorContained",
        "cudaErrorMpsClientTerminated",
    }
)


def check(returned: tuple[Any, ...], tried: str, advice: str = "") -> None:
    """Raise `CudaError` unless the call that returned `returned` succeeded; for calls without a value.

    `tried` completes "CUDA could not ..."; `advice` is a sentence about what to do.
    """
    if int(returned[0]):
        raise failed(returned[0], tried, advice)


def result(returned: tuple[Any, ...], tried: str, advice: str = "") -> Any:
    """The one value (or tuple of values) of a call; raises like `check`."""
    check(returned, tried, advice)
    return returned[1] if len(returned) == 2 else returned[1:]


def failed(error: Enum, tried: str, advice: str = "", kind: type[CudaError] = CudaError) -> CudaError:
    """The error to raise for CUDA's `error` (a cudaError_t or CUresult member)."""
    # Not to be found by the next, innocent call that asks for the last error of this thread.
    cudart.cudaGetLastError()
    if error.name in _FATAL:
        advice = "the GPU context of this process is lost: the process must be replaced"
    return kind(f"CUDA could not {tried}: {error.name}" + (f"; {advice}" if advice else ""), code=error.name)
