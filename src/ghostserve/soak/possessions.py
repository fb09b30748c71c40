"""What a server holds that could leak, counted from outside while it lives and looked for when it is gone."""

import os
import re
from collections import Counter
from collections.abc import Collection, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

__all__ = ["Possessions", "belongs_to", "count", "descriptor_kind", "members", "named_memory"]

_SHARED = Path("/dev/shm")
_POOL = min(32, (os.cpu_count() or 1) + 4)
"""Threads of asyncio's pool, which come when needed and stay: one more with each recovery soon exceeds them."""


@dataclass(frozen=True)
class Possessions:
    """`counts`: processes and named shared memory of a server, descriptors (by kind) and threads of its leaders.

    Leaders are the processes that are no rank and no standby; `rss` is their resident memory together, in bytes.
    """

    counts: dict[str, int]
    rss: int

    def more_than(self, before: "Possessions") -> list[str]:
        """What there is more of than before, in words; memory apart."""
        names = sorted({*self.counts, *before.counts})
        return [
            f"{name}: {self.counts.get(name, 0)}, before {before.counts.get(name, 0)}"
            for name in names
            if self.counts.get(name, 0) > before.counts.get(name, 0) + (_POOL if name == "threads" else 0)
        ]


def count(root: int, workers: Collection[int], memory_before: Collection[str]) -> Possessions:
    """Of the session that process `root` leads. `workers`: its ranks and standbys, which come and go."""
    everyone = members(root)
    named = named_memory(apart_from=root) - set(memory_before)
    counts = Counter({"processes": len(everyone), "named shared memory": len(named)})
    rss = 0
    for process in everyone:
        if process.pid in workers or _is_within(process, workers):
            continue
        with suppress(psutil.NoSuchProcess, FileNotFoundError):
            counts.update(f"descriptor {kind}" for kind in _descriptors(process.pid))
            counts["threads"] += process.num_threads()
            rss += process.memory_info().rss
    return Possessions(dict(counts), rss)


def members(root: int) -> list[psutil.Process]:
    """The processes of the session that `root` leads or led, without those that only wait to be reaped."""
    return [process for process in psutil.process_iter() if _session(process) == root]


def belongs_to(root: int, pid: int) -> bool:
    """Whether there is such a process, of that session."""
    return psutil.pid_exists(pid) and _session(psutil.Process(pid)) == root


def named_memory(*, apart_from: int | None = None) -> set[str]:
    """All named shared memory of this machine; with `apart_from`, a session, without what others have mapped."""
    named = {file.name for file in _SHARED.iterdir()} if _SHARED.is_dir() else set()
    return named - _mapped_outside(apart_from) if named and apart_from is not None else named


def _mapped_outside(root: int) -> set[str]:
    """Other programs come and go on this machine, too."""
    names: set[str] = set()
    for process in psutil.process_iter():
        if _session(process) == root:
            continue
        with suppress(OSError):
            maps = Path(f"/proc/{process.pid}/maps").read_text()
            names.update(re.findall(rf"{_SHARED}/(\S+)$", maps, re.MULTILINE))
    return names


def _session(process: psutil.Process) -> int:
    try:
        return os.getsid(process.pid) if process.status() != psutil.STATUS_ZOMBIE else -1
    except (psutil.NoSuchProcess, ProcessLookupError):
        return -1


def _is_within(process: psutil.Process, workers: Collection[int]) -> bool:
    try:
        return any(parent.pid in workers for parent in process.parents())
    except psutil.NoSuchProcess:
        return True


def _descriptors(pid: int) -> Iterable[str]:
    """What each open descriptor is."""
    for file in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):
            yield descriptor_kind(os.readlink(file))


def descriptor_kind(target: str) -> str:
    """What `/proc/PID/fd/N` points to, without numbers and without the drawn names of shared memory."""
    return re.sub("[0-9]+", "N", re.sub("(/dev/shm)/.*", r"\1/*", target))
