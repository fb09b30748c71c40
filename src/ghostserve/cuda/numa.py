"""Puts shared host memory on the NUMA nodes next to the GPUs that use it."""

import ctypes
import errno
import os
import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ghostserve.parity.memory import SharedRegion

__all__ = ["Placement", "gpu_nodes", "place_near_gpus"]

_SYSCALL = {"x86_64": 237, "aarch64": 235}
_PREFERRED = 1
_INTERLEAVE = 3

Mbind = Callable[[int, int, int, int], int]


@dataclass(frozen=True)
class Placement:
    """What was done: `nodes` that the pages will come from, empty if nothing was; `reason` is a sentence."""

    nodes: tuple[int, ...]
    reason: str


def gpu_nodes(bus_ids: Sequence[str], root: Path = Path("/")) -> tuple[int, ...]:
    """The NUMA nodes of the GPUs with these PCI addresses ("0000:3b:00.0"), ascending; those unknown left out."""
    files = (root / "sys/bus/pci/devices" / bus_id.lower() / "numa_node" for bus_id in bus_ids)
    return tuple(sorted({int(f.read_text()) for f in files if f.exists()} - {-1}))


def place_near_gpus(
    region: SharedRegion, bus_ids: Sequence[str], *, root: Path = Path("/"), mbind: Mbind | None = None
) -> Placement:
    """Ask the kernel to take the region's pages from the nodes of these GPUs, by turns if they are several.

    Goes for pages that nobody has touched yet, whoever touches them: call it right after the region was made. Without
    effect, with the reason, where there is one node, the GPUs' nodes are unknown, or the kernel does not allow it.
    `root` stands in for `/` and `mbind` (address, nbytes, mode, mask of nodes -> errno) for the system call in tests.
    """
    online = (root / "sys/devices/system/node/online").resolve()
    listed = online.read_text().strip() if online.exists() else "0"
    if listed == "0":
        return Placement((), "this machine has one NUMA node")
    nodes = gpu_nodes(bus_ids, root)
    if not nodes:
        return Placement((), f"the kernel names no NUMA node for the GPUs {', '.join(bus_ids)}")
    call = _mbind if mbind is None else mbind
    # "Preferred", not "bind": a full node must not kill a process that could have used the other.
    mode = _PREFERRED if len(nodes) == 1 else _INTERLEAVE
    code = call(int(region.array.ctypes.data), region.nbytes, mode, sum(1 << n for n in nodes))
    names = f"NUMA node{'s' if len(nodes) > 1 else ''} {', '.join(map(str, nodes))} of {listed}"
    if code in (errno.EPERM, errno.ENOSYS, errno.EINVAL):
        return Placement((), f"the kernel refused to place host memory on {names}: {os.strerror(code)}")
    if code:
        raise OSError(code, f"mbind of {region.nbytes} bytes to {names}: {os.strerror(code)}")
    return Placement(nodes, f"host memory comes from {names}")


def _mbind(address: int, nbytes: int, mode: int, mask: int) -> int:
    number = _SYSCALL.get(platform.machine())
    if number is None:
        return errno.ENOSYS
    words = (mask.bit_length() + 63) // 64
    nodes = (ctypes.c_ulong * words)(*(mask >> 64 * i & 0xFFFF_FFFF_FFFF_FFFF for i in range(words)))
    libc = ctypes.CDLL(None, use_errno=True)
    # The kernel reads one bit less than it is told.
    returned = libc.syscall(
        ctypes.c_long(number),
        ctypes.c_void_p(address),
        ctypes.c_ulong(nbytes),
        ctypes.c_long(mode),
        nodes,
        ctypes.c_ulong(words * 64 + 1),
        ctypes.c_ulong(0),
    )
    return ctypes.get_errno() if returned else 0
