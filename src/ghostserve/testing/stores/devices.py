"""Writers that the store does not see: `begin`, bytes from another hand, `commit`."""

import ctypes

import numpy as np
import pytest

from ghostserve.errors import StaleEpochError
from ghostserve.parity import SlotRange
from ghostserve.testing.stores.base import EPOCH, OLD, StoreSuite

__all__ = ["Devices"]

_PAGE = 4096


class Devices(StoreSuite):
    def test_between_begin_and_commit_nothing_counts(self) -> None:
        ranges = [SlotRange(9, 6, 2, 1, 3), SlotRange(0, 1, 0, 3, 4)]
        with self.opened() as store:
            parity, sums = self.written(store, 0, OLD)
            store.begin(EPOCH, ranges)
            self.check_nothing(store, OLD.part(1, 3), *ranges)
            self.check_holds(store, [OLD.part(3, 4)], parity[2:], sums[2:])
            more = self.content(1, 3)[1]
            store.commit(EPOCH, ranges, more)
            assert store.committed_slots(ranges).all(), f"{ranges} are committed, and don't count"
            assert np.array_equal(store.records(ranges), more), "the checksums are not those of the commit"

    def test_a_table_says_the_same_as_its_ranges(self) -> None:
        ranges = [SlotRange(70_000, 9, 3, 0, 4), SlotRange(2, 1, 0, 3, 3), SlotRange(5, 2**32 - 1, 1, 2, 4)]
        with self.opened() as store:
            table, sums = store.table(ranges), self.content(0, 6)[1]
            store.begin(EPOCH, table)
            store.commit(EPOCH, table, sums)
            assert store.committed_slots(ranges).all(), "what was committed by a table does not count"
            assert np.array_equal(store.records(ranges), sums), "what was committed by a table reads otherwise"
            store.begin(EPOCH, table[4:])
            assert store.committed_slots(table).tolist() == [True] * 4 + [False] * 2, "of 6 slots 4 are committed"

    def test_a_fence_between_begin_and_commit_leaves_the_slots_uncommitted(self) -> None:
        with self.opened() as store, self.attached(store) as writer:
            writer.begin(EPOCH, OLD)
            store.advance(EPOCH + 1)
            with pytest.raises(StaleEpochError) as error:
                writer.commit(EPOCH, OLD, self.content(0, 3)[1])
            self.check_stale(error.value, found=EPOCH + 1, expected=EPOCH)
            self.check_nothing(store, OLD)

    def test_bytes_that_a_device_puts_at_the_address_are_the_payload(self) -> None:
        ranges = [SlotRange(9, 6, 2, 1, 3), SlotRange(0, 1, 0, 3, 4)]
        g = self.geometry
        with self.opened() as store, self.attached(store) as device:
            if not hasattr(device, "payload_address"):
                pytest.skip("this store's payload has no address: no device writes to it")
            assert device.payload_address % _PAGE == 0, f"address {device.payload_address:#x} can't be pinned alone"
            parity, sums = self.content(1, 3)
            device.begin(EPOCH, ranges)
            for row, slot in zip(device.store_rows(ranges).tolist(), parity, strict=True):
                for index in range(g.num_parity):
                    address = device.payload_address + (row * g.num_parity + index) * g.slot_bytes
                    ctypes.memmove(address, slot[index].tobytes(), g.slot_bytes)
            device.commit(EPOCH, ranges, sums)
            self.check_holds(store, ranges, parity, sums)
