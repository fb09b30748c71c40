"""Memory that a node's workers map by a handle alone: no descriptor is passed and no name is left on disk.

A worker keeps its KV cache in a `SharedRegion` of its own and tells the others (pid, descriptor); they open it through
/proc. The executor's parity store is shared the same way. What is mapped stays readable after its owner was killed:
that is what a rebuild reads.
"""

import os

import msgspec

from ghostserve.errors import PeerAccessError, StoreMismatchError
from ghostserve.parity.memory import SharedRegion

__all__ = ["handle_of", "open_peer"]


class _Handle(msgspec.Struct, frozen=True):
    """A region as its owner sees it. `started` and `inode` tell a recycled pid and a reused descriptor apart."""

    pid: int
    started: int
    fd: int
    inode: int
    nbytes: int


def handle_of(region: SharedRegion) -> bytes:
    """What processes of the same user on this node need to `open_peer` a region of this process; msgpack.

    Good for as long as this process lives and keeps the region open.
    """
    owner = os.open("/proc/self", os.O_RDONLY | os.O_DIRECTORY)
    try:
        started = _start_time(owner)
    finally:
        os.close(owner)
    inode = os.fstat(region.fd).st_ino
    return msgspec.msgpack.encode(_Handle(os.getpid(), started, region.fd, inode, region.nbytes))


def open_peer(handle: bytes) -> SharedRegion:
    """Map the region that `handle` names, readable and writable; it stays mapped when its owner dies.

    Raises `PeerAccessError`, with the owner's pid and the reason, when the owner is gone, another process has its
    pid now, it closed the region, or this user may not look into it; `ValueError` for bytes that are no handle.
    """
    try:
        wanted = msgspec.msgpack.decode(handle, type=_Handle)
    except msgspec.DecodeError as error:
        raise ValueError(f"these {len(handle)} bytes are no handle of shared memory: {error}") from error
    try:
        # This descriptor means the process, not the number: once it is gone, whoever gets the pid is not found here.
        owner = os.open(f"/proc/{wanted.pid}", os.O_RDONLY | os.O_DIRECTORY)
    except FileNotFoundError as error:
        raise _refused(wanted, "the process is gone") from error
    try:
        if _start_time(owner) != wanted.started:
            raise _refused(wanted, "the process is gone and another one has its pid now")
        fd = os.open(f"fd/{wanted.fd}", os.O_RDWR, dir_fd=owner)
    except (FileNotFoundError, ProcessLookupError) as error:
        raise _refused(wanted, f"the process is gone or has closed descriptor {wanted.fd}") from error
    except OSError as error:
        raise _refused(
            wanted, f"descriptor {wanted.fd}: {error.strerror}: is the process ending, or another user's?"
        ) from error
    finally:
        os.close(owner)
    try:
        if os.fstat(fd).st_ino != wanted.inode:
            raise _refused(wanted, f"descriptor {wanted.fd} is another file by now")
        return SharedRegion.attach(fd, wanted.nbytes)
    except StoreMismatchError as error:
        raise _refused(wanted, str(error)) from error
    finally:
        os.close(fd)


def _start_time(process: int) -> int:
    """When a process began, in clock ticks since boot; `process`: a descriptor of its folder in /proc."""
    stat = os.open("stat", os.O_RDONLY, dir_fd=process)
    try:
        text = os.read(stat, 4096)
    finally:
        os.close(stat)
    # Field 22 of proc_pid_stat(5). Field 2, the name, stands in brackets and can hold spaces and brackets.
    return int(text[text.rindex(b")") + 1 :].split()[22 - 3])


def _refused(handle: _Handle, reason: str) -> PeerAccessError:
    return PeerAccessError(f"the {handle.nbytes} bytes of shared memory of process {handle.pid}: {reason}")
