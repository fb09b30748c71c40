"""What this machine's GPUs, driver and NCCL can do, as read from them."""

import ctypes
import os
import subprocess
import sys

import msgspec
import torch

from ghostserve.errors import CudaError, DeviceUnavailableError

__all__ = ["MULTI_RANK", "DeviceFact", "Facts", "gather_facts", "gather_facts_apart"]

MULTI_RANK = "NCCL_MULTI_RANK_GPU_ENABLE"
CHECK_BYTES = 2 << 20
CHECK_BYTE = 0x5A


class DeviceFact(msgspec.Struct, frozen=True):
    """One visible GPU; memory in bytes. `exclusive`: its compute mode lets only one process use it."""

    name: str
    bus_id: str
    free: int
    total: int
    exclusive: bool = False


class Facts(msgspec.Struct, frozen=True):
    """What `choose_devices` decides by.

    `problem`: why there is no CUDA at all, else None. `driver`, `bindings`: CUDA versions as 1000 * major +
    10 * minor. `nccl`: the version that torch really loaded, None without. `multi_rank`: the value of
    NCCL_MULTI_RANK_GPU_ENABLE, None if it is not set. `peers[i][j]`: device i reads the memory of j.
    `ipc_problem`: why one process can't map another's device memory, else None.
    """

    problem: str | None = None
    devices: tuple[DeviceFact, ...] = ()
    driver: int = 0
    bindings: int = 0
    nccl: tuple[int, int, int] | None = None
    multi_rank: str | None = None
    peers: tuple[tuple[bool, ...], ...] = ()
    ipc_problem: str | None = None


def gather_facts_apart(timeout: float = 120.0) -> Facts:
    """`gather_facts` in a process of its own: the one that asks keeps no context (500 MiB) on any GPU.

    Raises `DeviceUnavailableError` if that process fails or takes longer than `timeout` seconds.
    """
    command = [sys.executable, "-m", "ghostserve.cuda.facts"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout)
    except subprocess.TimeoutExpired as error:
        raise DeviceUnavailableError(f"the GPUs did not answer within {timeout:.0f} s: see `nvidia-smi`") from error
    if done.returncode:
        raise DeviceUnavailableError(f"asking the GPUs failed with status {done.returncode}: {_last_line(done.stderr)}")
    return msgspec.json.decode(done.stdout.splitlines()[-1], type=Facts)


def gather_facts() -> Facts:
    """Read everything; makes a context on each GPU. Never raises for a machine that lacks something."""
    setting = os.environ.get(MULTI_RANK)
    if torch.version.cuda is None:
        return Facts(
            f"torch {torch.__version__} is built without CUDA: install a CUDA build of torch", multi_rank=setting
        )
    try:
        from cuda.bindings import runtime as cudart

        from ghostserve.cuda.calls import check, result
    except ImportError as error:
        return Facts(f"{error}: install the extra ghostserve[cuda]", multi_rank=setting)
    driver: int = result(cudart.cudaDriverGetVersion(), "read the driver's version")
    bindings: int = result(cudart.cudaRuntimeGetVersion(), "read the version of cuda-bindings")
    versions = Facts(driver=driver, bindings=bindings, nccl=_nccl_version(), multi_rank=setting)
    if driver == 0:
        return msgspec.structs.replace(versions, problem="there is no NVIDIA driver (libcuda.so.1)")
    if not torch.cuda.is_available():
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", "not set")
        problem = (
            f"torch {torch.__version__} (CUDA {torch.version.cuda}) sees no GPU under a driver for CUDA "
            f"{driver // 1000}.{driver % 1000 // 10}; CUDA_VISIBLE_DEVICES is {visible}"
        )
        return msgspec.structs.replace(versions, problem=problem)
    devices = []
    count = torch.cuda.device_count()
    try:
        for i in range(count):
            check(cudart.cudaSetDevice(i), f"use device {i}")
            free, total = result(cudart.cudaMemGetInfo(), f"read the free memory of device {i}")
            bus_id = result(cudart.cudaDeviceGetPCIBusId(32, i), "read a bus id").split(b"\0")[0].decode().lower()
            mode = result(
                cudart.cudaDeviceGetAttribute(cudart.cudaDeviceAttr.cudaDevAttrComputeMode, i), "read a compute mode"
            )
            exclusive = mode == cudart.cudaComputeMode.cudaComputeModeExclusiveProcess
            devices.append(DeviceFact(torch.cuda.get_device_name(i), bus_id, free, total, exclusive))
    except CudaError as error:
        return msgspec.structs.replace(versions, problem=str(error))
    peers = tuple(tuple(i == j or torch.cuda.can_device_access_peer(i, j) for j in range(count)) for i in range(count))
    return msgspec.structs.replace(versions, devices=tuple(devices), peers=peers, ipc_problem=_ipc_problem())


def _nccl_version() -> tuple[int, int, int] | None:
    """Of the library that is loaded; `torch.cuda.nccl.version` tells the one that torch was built with."""
    try:
        # NOLOAD: torch has loaded it already, or it is linked into torch, or there is none.
        library = ctypes.CDLL("libnccl.so.2", mode=os.RTLD_NOLOAD | os.RTLD_NOW)
    except OSError:
        if not hasattr(torch._C, "_nccl_version"):
            return None
        major, minor, patch = torch.cuda.nccl.version()[:3]  # type: ignore[no-untyped-call]
        return major, minor, patch
    number = ctypes.c_int()
    if library.ncclGetVersion(ctypes.byref(number)):
        return None
    # 2.8 and older: 1000 * major + 100 * minor + patch.
    unit = 10000 if number.value >= 10000 else 1000
    return number.value // unit, number.value % unit // 100, number.value % 100


def _ipc_problem() -> str | None:
    """Share memory of device 0 with a second process; None if that reads the right bytes."""
    from ghostserve.cuda import ipc
    from ghostserve.cuda.runtime import CudaRuntime

    try:
        runtime = CudaRuntime(0)
        address = runtime.malloc(CHECK_BYTES)
        try:
            stream = runtime.stream()
            runtime.fill(address, CHECK_BYTE, CHECK_BYTES, stream)
            stream.synchronize()
            allocation = ipc.decode(runtime.export(address)).allocation
            command = [sys.executable, "-m", "ghostserve.cuda.ipc_check", "0", allocation.hex()]
            done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        finally:
            runtime.free(address)
    except (CudaError, subprocess.TimeoutExpired) as error:
        return str(error)
    if done.returncode:
        return _last_line(done.stderr)
    found = bytes.fromhex(done.stdout.strip())
    return None if found == bytes([CHECK_BYTE]) * len(found) else f"a second process read other bytes: {found.hex()}"


def _last_line(text: str) -> str:
    return (text.strip().splitlines() or ["it printed nothing"])[-1]


if __name__ == "__main__":
    print(msgspec.json.encode(gather_facts()).decode())
