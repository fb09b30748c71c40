"""How much host memory is there to take: the machine's, and the control group's where that is less."""

from pathlib import Path

__all__ = ["available_memory", "format_bytes"]

# A v1 group without a limit reports the largest page-aligned int64.
_NO_LIMIT = 1 << 62


def format_bytes(count: int) -> str:
    """`count` bytes for people: '1.5 GiB'."""
    value = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(value) < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"


def available_memory(root: Path = Path("/")) -> int:
    """Bytes that this process can still take without swapping or being killed for it.

    The least of `MemAvailable` and the room in each control group above this process (v1 and v2). `root`
    stands in for `/` in tests.
    """
    return min([_machine_room(root), *_cgroup_rooms(root)])


def _machine_room(root: Path) -> int:
    for line in (root / "proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return _NO_LIMIT


def _cgroup_rooms(root: Path) -> list[int]:
    membership = root / "proc/self/cgroup"
    if not membership.exists():
        return []
    rooms: list[int] = []
    for line in membership.read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            base, limit, usage, reclaimable = "sys/fs/cgroup", "memory.max", "memory.current", "inactive_file"
        elif "memory" in controllers.split(","):
            base, limit, usage = "sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes"
            reclaimable = "total_inactive_file"
        else:
            continue
        group = Path(path.lstrip("/"))
        for folder in (group, *group.parents):
            room = _room(root / base / folder, limit, usage, reclaimable)
            if room is not None:
                rooms.append(room)
    return rooms


def _room(folder: Path, limit: str, usage: str, reclaimable: str) -> int | None:
    """Bytes left in one group; None where it has no limit or (in a container) is not visible."""
    if not (folder / limit).exists() or not (folder / usage).exists():
        return None
    text = (folder / limit).read_text().strip()
    if text == "max" or int(text) >= _NO_LIMIT:
        return None
    # Page cache counts as used, but the kernel gives it up before it refuses memory.
    stat = folder / "memory.stat"
    lines = stat.read_text().splitlines() if stat.exists() else []
    cache = sum(int(value) for key, value in (line.split() for line in lines) if key == reclaimable)
    return max(0, int(text) - int((folder / usage).read_text()) + cache)
