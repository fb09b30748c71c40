"""What does not fit is refused, with the numbers, and changes nothing."""

import os
import stat
from dataclasses import astuple, fields, replace

import numpy as np
import pytest

from ghostserve.errors import DiskBudgetError, MemoryBudgetError, StoreMismatchError
from ghostserve.parity import SlotRange, StoreGeometry
from ghostserve.testing.stores.base import EPOCH, OLD, StoreSuite

__all__ = ["Refusals"]


class Refusals(StoreSuite):
    def test_slots_that_the_store_does_not_have_are_refused(self) -> None:
        g = self.geometry
        wrong = (
            SlotRange(0, 0, g.num_parity_blocks, 0, 1), SlotRange(0, 0, -1, 0, 1), SlotRange(0, 0, 0, -1, 1),
            SlotRange(0, 0, 0, 0, g.block_size + 1), SlotRange(0, 1 << 32, 0, 0, 1), SlotRange(1 << 32, 0, 0, 0, 1),
        )  # fmt: skip
        with self.opened() as store:
            parity, sums = self.written(store, 0, OLD)
            for one in wrong:
                count = max(0, one.stop - one.start)
                for refused in (
                    lambda one=one, count=count: store.write(EPOCH, [OLD, one], *self.content(1, 3 + count)),
                    lambda one=one: store.committed_slots([one]),
                    lambda one=one: store.table([one]),
                ):
                    with pytest.raises(ValueError, match=r"\d"):
                        refused()
            store.settle(EPOCH)
            self.check_holds(store, [OLD], parity, sums)

    def test_parity_of_another_shape_is_refused_with_both_shapes(self) -> None:
        with self.opened() as store:
            parity, sums = self.written(store, 0, OLD)
            for wrong in (parity[:2], parity[:, :1], parity[:, :, :-1], parity[0]):
                with pytest.raises(ValueError, match=r"\(.*\).*\(.*\)") as error:
                    store.write(EPOCH, OLD, wrong, sums)
                assert str(parity.shape) in str(error.value), f"{error.value} does not say {parity.shape}"
            store.settle(EPOCH)
            self.check_holds(store, [OLD], parity, sums)

    def test_checksums_of_another_shape_are_refused_with_both_shapes(self) -> None:
        with self.opened() as store:
            parity, sums = self.written(store, 0, OLD)
            for wrong in (sums[:2], sums[:, :-1], np.concatenate([sums, sums]), sums[:1], sums[0]):
                with pytest.raises(ValueError, match=r"\(.*\).*\(.*\)") as error:
                    store.write(EPOCH, OLD, parity, wrong)
                assert str(sums.shape) in str(error.value), f"{error.value} does not say {sums.shape}"
                with pytest.raises(ValueError, match=r"\(.*\).*\(.*\)"):
                    store.commit(EPOCH, OLD, wrong)
            store.settle(EPOCH)
            self.check_holds(store, [OLD], parity, sums)

    def test_attach_refuses_another_geometry_and_names_the_number(self) -> None:
        g = self.geometry
        with self.opened() as store:
            for field, value in zip(fields(g), astuple(g), strict=True):
                with pytest.raises(StoreMismatchError, match=r"\d"):
                    self.attach(store.fds, replace(g, **{field.name: value + 1})).close()
            swapped = replace(g, num_parity_blocks=2 * g.num_parity_blocks, slot_bytes=g.slot_bytes // 2)
            with pytest.raises(StoreMismatchError, match=r"\d"):
                self.attach(store.fds, swapped).close()

    def test_a_store_that_does_not_fit_on_the_machine_is_refused(self) -> None:
        huge = StoreGeometry(num_data=1, num_parity=1, num_parity_blocks=1, block_size=1, slot_bytes=1 << 60)
        with pytest.raises((MemoryBudgetError, DiskBudgetError), match=r"TiB"):
            self.create(huge).close()

    def test_it_has_no_name_and_is_this_user_s_only(self) -> None:
        """Nothing stays behind when all processes are killed, and no stranger reads it."""
        with self.opened() as store:
            assert store.fds, "a store without descriptors can't be attached to"
            for fd in store.fds:
                found = os.fstat(fd)
                assert found.st_nlink == 0, f"descriptor {fd} has {found.st_nlink} names"
                assert stat.S_IMODE(found.st_mode) == 0o600, f"descriptor {fd} has mode {stat.S_IMODE(found.st_mode):o}"
