"""Run as a process of its own: opens a handle of device memory and prints the first bytes behind it, in hex.

    python -m ghostserve.cuda.ipc_check DEVICE HANDLE_IN_HEX

Without torch, so that it starts fast.
"""

import ctypes
import sys

from cuda.bindings import runtime as cudart

from ghostserve.cuda.calls import check, result

__all__ = ["main"]

COUNT = 16


def main(device: str, handle: str) -> None:
    """Raises `CudaError` where CUDA IPC does not work between two processes."""
    check(cudart.cudaSetDevice(int(device)), f"use device {device} in a second process")
    raw = cudart.cudaIpcMemHandle_t()
    raw.reserved = bytes.fromhex(handle)
    tried = "open a first process's memory in a second"
    base = result(cudart.cudaIpcOpenMemHandle(raw, cudart.cudaIpcMemLazyEnablePeerAccess), tried)
    found = ctypes.create_string_buffer(COUNT)
    kind = cudart.cudaMemcpyKind.cudaMemcpyDeviceToHost
    check(cudart.cudaMemcpy(ctypes.addressof(found), base, COUNT, kind), "read another process's memory")
    check(cudart.cudaIpcCloseMemHandle(base), "close another process's memory")
    print(found.raw.hex())


if __name__ == "__main__":
    main(*sys.argv[1:])
