"""The store on a disk: nothing counts before it was synced, and what the disk refuses is not committed.

What every store promises is tried in tests/testing.
"""

import os
import resource
import stat
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from ghostserve.errors import DiskBudgetError, StoreMismatchError
from ghostserve.parity.file_store import FileStore
from ghostserve.parity.geometry import StoreGeometry
from ghostserve.parity.ranges import SlotRange, num_slots

GEOMETRY = StoreGeometry(num_data=2, num_parity=2, num_parity_blocks=6, block_size=8, slot_bytes=64)
PIECES = [SlotRange(9, 3, 4, 2, 8), SlotRange(5, 1, 0, 0, 3), SlotRange(6, 1, 1, 0, 8)]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[FileStore]:
    made = FileStore.create_in(str(tmp_path), GEOMETRY)
    yield made
    made.close()


def content(ranges: list[SlotRange], seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    count = num_slots(ranges)
    parity = rng.integers(0, 256, (count, GEOMETRY.num_parity, GEOMETRY.slot_bytes), dtype=np.uint8)
    return parity, rng.integers(1, 1 << 63, (count, 4), dtype=np.uint64)


def test_nothing_is_committed_before_the_sync(store: FileStore, monkeypatch: pytest.MonkeyPatch) -> None:
    parity, sums = content(PIECES)
    store.write(1, PIECES, parity, sums)
    assert not store.committed_slots(PIECES).any()
    order: list[tuple[str, bool]] = []
    sync = os.fdatasync
    monkeypatch.setattr(
        os, "fdatasync", lambda fd: (order.append(("sync", store.committed_slots(PIECES).any())), sync(fd))
    )
    store.settle(1)
    assert order == [("sync", False)]  # one for all, and none of them was committed at that moment
    assert store.committed_slots(PIECES).all()


def test_writing_again_uncommits_first(store: FileStore) -> None:
    store.write(1, PIECES, *content(PIECES))
    store.settle(1)
    again, sums = content(PIECES, seed=1)
    store.write(1, PIECES, again, sums)
    assert not store.committed_slots(PIECES).any()
    store.settle(1)
    assert np.array_equal(store.payload(PIECES), again)


def test_a_disk_that_refuses_commits_nothing(store: FileStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(fd: int) -> None:
        raise OSError(28, "No space left on device")

    parity, sums = content(PIECES)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fdatasync", broken)
        store.write(1, PIECES, parity, sums)
        with pytest.raises(OSError, match="No space"):
            store.settle(1)
    assert not store.committed_slots(PIECES).any()
    store.settle(1)  # what failed is not tried again behind the coordinator's back
    assert not store.committed_slots(PIECES).any()
    store.write(1, PIECES, parity, sums)
    store.settle(1)
    assert store.committed_slots(PIECES).all()


def test_a_write_that_the_disk_refuses_takes_its_flush_with_it(
    store: FileStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*arguments: object) -> int:
        raise OSError(5, "Input/output error")

    parity, sums = content(PIECES)
    store.write(1, PIECES[:1], parity[:6], sums[:6])
    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", broken)
        with pytest.raises(OSError, match="Input/output"):
            store.write(1, PIECES[1:], parity[6:], sums[6:])
    store.settle(1)
    assert not store.committed_slots(PIECES).any()


def test_a_table_and_parts_of_rows(store: FileStore) -> None:
    parity, sums = content(PIECES)
    table = store.table(PIECES)
    store.write(1, table, parity, sums)
    store.settle(1)
    assert np.array_equal(store.payload(PIECES), parity)
    for first, shards in ((0, 1), (1, 1), (0, 2)):
        out = np.full((7, shards, GEOMETRY.slot_bytes), 0xA5, dtype=np.uint8)
        store.read_shards([(4, int(table.row[6]), 3), (0, int(table.row[1]), 4)], first, out)
        wanted = slice(first, first + shards)
        assert np.array_equal(out, np.concatenate([parity[1:5, wanted], parity[6:9, wanted]]))


def test_no_room_is_said_before_anything_starts(tmp_path: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        with pytest.raises(DiskBudgetError, match=r"can't hold .* lower kv_cache_memory"):
            FileStore.create_in(str(tmp_path), GEOMETRY)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    with pytest.raises(DiskBudgetError, match="name another folder"):
        FileStore.create_in(str(tmp_path / "missing"), GEOMETRY)


def test_the_file_is_private_and_has_no_name(store: FileStore, tmp_path: Path) -> None:
    _, file = store.fds
    assert stat.S_IMODE(os.fstat(file).st_mode) == 0o600
    assert list(tmp_path.iterdir()) == []
    assert os.fstat(file).st_size == GEOMETRY.payload_bytes


def test_another_geometry_is_refused(store: FileStore) -> None:
    other = StoreGeometry(num_data=2, num_parity=2, num_parity_blocks=6, block_size=8, slot_bytes=32)
    with pytest.raises(StoreMismatchError, match="slot_bytes 64, 32"):
        FileStore.attach_file(*store.fds, other)


def test_torn_payload_is_found_by_its_checksums(store: FileStore) -> None:
    """The store can't see it: the record is whole. Who reads compares, so the bytes must really be read again."""
    parity, sums = content(PIECES)
    store.write(1, PIECES, parity, sums)
    store.settle(1)
    os.pwrite(store.fds[1], b"\xff" * 8, int(store.store_rows(PIECES)[0]) * 2 * GEOMETRY.slot_bytes)
    assert store.committed_slots(PIECES).all()
    assert not np.array_equal(store.payload(PIECES), parity)
