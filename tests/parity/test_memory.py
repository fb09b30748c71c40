import os
import stat

import numpy as np
import pytest

from ghostserve.errors import ConfigError, MemoryBudgetError, StoreMismatchError
from ghostserve.parity import SharedRegion
from ghostserve.parity.limits import available_memory, format_bytes


def test_a_region_is_private_sealed_and_zero():
    with SharedRegion.create("test", 8192) as region:
        assert stat.S_IMODE(os.fstat(region.fd).st_mode) == 0o600
        assert not region.array.any()
        with pytest.raises(PermissionError):
            os.ftruncate(region.fd, 4096)
        with pytest.raises(PermissionError):
            os.ftruncate(region.fd, 16384)


def test_attached_regions_share_bytes_and_outlive_their_maker():
    first = SharedRegion.create("test", 4096)
    second = SharedRegion.attach(first.fd, 4096)
    first.array[17] = 99
    first.close()
    assert second.array[17] == 99
    second.close()


def test_another_process_sees_the_bytes_and_its_sudden_end_takes_nothing_away():
    with SharedRegion.create("test", 4096) as region:
        child = os.fork()
        if child == 0:
            SharedRegion.attach(region.fd, 4096).array[5] = 7
            os.kill(os.getpid(), 9)
        os.waitpid(child, 0)
        assert region.array[5] == 7


def test_closing_twice_is_harmless_and_views_survive():
    region = SharedRegion.create("test", 4096)
    view = region.array[:8]
    region.close()
    region.close()
    view[:] = 1
    assert view.sum() == 8
    with pytest.raises(ValueError, match="closed"):
        _ = region.array


def test_a_region_leaves_no_descriptor_behind():
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        region = SharedRegion.create("test", 4096)
        SharedRegion.attach(region.fd, 4096).close()
        with pytest.raises(StoreMismatchError, match="4096 bytes long, 8192"):
            SharedRegion.attach(region.fd, 8192)
        region.close()
    assert len(os.listdir("/proc/self/fd")) == before


def test_pages_are_taken_lazily():
    with SharedRegion.create("test", 64 << 20) as region:
        assert os.fstat(region.fd).st_blocks == 0
        region.array[:4096] = 1
        assert os.fstat(region.fd).st_blocks * 512 <= 2 << 20


def test_more_than_the_host_has_is_refused_in_readable_units():
    with pytest.raises(MemoryBudgetError, match=r"needs 1024\.0 TiB of host memory.*available: lower") as error:
        SharedRegion.create("parity", 1 << 50)
    assert error.value.needed == 1 << 50
    assert 0 < error.value.available < 1 << 50


def test_empty_regions_are_refused():
    with pytest.raises(ConfigError, match="0 bytes"):
        SharedRegion.create("test", 0)


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (3 << 30, "3.0 GiB"), (5 << 40, "5.0 TiB")],
)
def test_bytes_for_people(count, text):
    assert format_bytes(count) == text


def _write(root, files):
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


MEMINFO = {"proc/meminfo": "MemTotal: 9000 kB\nMemAvailable: 5000 kB\n"}


@pytest.mark.parametrize(
    ("files", "available"),
    [
        ({}, 5000 << 10),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/memory.max": "max\n"}, 5000 << 10),
        (
            {
                "proc/self/cgroup": "0::/a/b\n",
                "sys/fs/cgroup/a/memory.max": "1000000\n",
                "sys/fs/cgroup/a/memory.current": "900000\n",
                "sys/fs/cgroup/a/memory.stat": "anon 5\ninactive_file 300000\n",
            },
            400000,
        ),
        (
            {
                "proc/self/cgroup": "3:cpu,memory:/x\n2:cpuset:/\n",
                "sys/fs/cgroup/memory/memory.limit_in_bytes": "2000000\n",
                "sys/fs/cgroup/memory/memory.usage_in_bytes": "1500000\n",
                "sys/fs/cgroup/memory/memory.stat": "total_inactive_file 1000\n",
            },
            501000,
        ),
        (
            {
                "proc/self/cgroup": "0::/\n",
                "sys/fs/cgroup/memory.max": "1000\n",
                "sys/fs/cgroup/memory.current": "4000\n",
            },
            0,
        ),
    ],
)
def test_the_smallest_room_counts(tmp_path, files, available):
    _write(tmp_path, MEMINFO | files)
    assert available_memory(tmp_path) == available


def test_this_machine_has_room():
    assert available_memory() > 1 << 20
    assert np.iinfo(np.int64).max > available_memory()
