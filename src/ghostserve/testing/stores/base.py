"""How the suite gets at a store, and what it writes to it."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from ghostserve.errors import StaleEpochError
from ghostserve.parity import ParityStore, SlotRange, StoreGeometry

__all__ = ["EPOCH", "OLD", "StoreSuite"]

EPOCH = 3
OLD = SlotRange(block=9, generation=5, parity_block=2, start=1, stop=4)

Bytes = NDArray[np.uint8]
Sums = NDArray[np.uint64]


class StoreSuite(ABC):
    """`geometry`: of the stores that are tried; at least 4 parity blocks of at least 4 slots, 2 parity shards."""

    geometry: ClassVar[StoreGeometry] = StoreGeometry(
        num_data=3, num_parity=2, num_parity_blocks=4, block_size=4, slot_bytes=16
    )

    @abstractmethod
    def create(self, geometry: StoreGeometry, epoch: int = 1) -> ParityStore:
        """A new, empty store, as the coordinator makes it. Raises `MemoryBudgetError` or `DiskBudgetError`."""

    @abstractmethod
    def attach(self, fds: tuple[int, ...], geometry: StoreGeometry) -> ParityStore:
        """Another process's view of the store with these `fds`. Raises `StoreMismatchError` if it is another."""

    @contextmanager
    def opened(self) -> Iterator[ParityStore]:
        """A new store under `EPOCH`, closed in the end."""
        store = self.create(self.geometry, EPOCH)
        try:
            yield store
        finally:
            store.close()

    @contextmanager
    def attached(self, store: ParityStore) -> Iterator[ParityStore]:
        """Another view of `store`, closed in the end."""
        other = self.attach(store.fds, self.geometry)
        try:
            yield other
        finally:
            other.close()

    def content(self, seed: int, slots: int) -> tuple[Bytes, Sums]:
        """Parity uint8 (slots, K, slot_bytes) and checksums uint64 (slots, N+K), of which no byte is 0."""
        g, rng = self.geometry, np.random.default_rng(seed)
        parity = rng.integers(1, 256, (slots, g.num_parity, g.slot_bytes), dtype=np.uint8)
        sums = rng.integers(1, 256, (slots, 8 * (g.num_data + g.num_parity)), dtype=np.uint8)
        return parity, sums.view(np.uint64)

    def written(self, store: ParityStore, seed: int, *ranges: SlotRange, epoch: int = EPOCH) -> tuple[Bytes, Sums]:
        """Write, settle, and return what was written."""
        parity, sums = self.content(seed, sum(r.stop - r.start for r in ranges))
        store.write(epoch, ranges, parity, sums)
        store.settle(epoch)
        return parity, sums

    def check_holds(self, store: ParityStore, ranges: Sequence[SlotRange], parity: Bytes, sums: Sums) -> None:
        """All slots of `ranges` are committed, with just this content."""
        committed = store.committed_slots(ranges)
        assert committed.all(), f"not all of {ranges} is committed: {committed.tolist()}"
        assert np.array_equal(store.payload(ranges), parity), f"the parity of {ranges} is not what was written"
        assert np.array_equal(store.records(ranges), sums), f"the checksums of {ranges} are not what was written"

    def check_nothing(self, store: ParityStore, *ranges: SlotRange) -> None:
        """No slot of `ranges` is committed."""
        committed = store.committed_slots(ranges)
        assert not committed.any(), f"some of {ranges} is committed: {committed.tolist()}"

    def check_stale(self, error: StaleEpochError, *, found: int, expected: int) -> None:
        told = error.found, error.expected
        assert told == (found, expected), f"the error tells of epochs {told}, not of {(found, expected)}"
