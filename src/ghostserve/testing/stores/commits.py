"""What is committed, and what counts as committed."""

import numpy as np

from ghostserve.parity import SlotRange
from ghostserve.testing.stores.base import EPOCH, OLD, StoreSuite

__all__ = ["Commits"]


class Commits(StoreSuite):
    def test_a_fresh_store_has_nothing_committed(self) -> None:
        with self.opened() as store:
            for place in range(self.geometry.num_parity_blocks):
                for block, generation in ((0, 0), (0, 1), (place, 0)):
                    found = store.committed(block, generation, place)
                    assert found.shape == (self.geometry.block_size,), f"committed() has shape {found.shape}"
                    assert not found.any(), f"a fresh store has block {block} committed in place {place}"

    def test_what_is_written_and_settled_is_read_back(self) -> None:
        with self.opened() as store, self.attached(store) as other:
            parity, sums = self.written(store, 0, OLD)
            for view in (store, other):
                self.check_holds(view, [OLD], parity, sums)
                assert view.committed(9, 5, 2).tolist() == [False, True, True, True], "slot 0 was never written"
                assert np.array_equal(view.payload(OLD), parity), "one range reads otherwise than a list of one"
                assert np.array_equal(view.records(OLD), sums), "one range reads otherwise than a list of one"

    def test_a_parity_shard_is_read_alone(self) -> None:
        ranges = [OLD, SlotRange(1, 1, 0, 2, 4)]
        with self.opened() as store:
            parity, _ = self.written(store, 0, *ranges)
            for index in range(self.geometry.num_parity):
                found = store.parity_shard(ranges, index)
                assert np.array_equal(found, parity[:, index]), f"parity_shard {index} gives other bytes"
                assert np.array_equal(store.parity_shard([OLD], index), parity[:3, index]), "one range alone differs"

    def test_many_ranges_are_one_write_and_one_read(self) -> None:
        """In the order in which they are given, whatever the order of their places."""
        ranges = [SlotRange(0, 1, 3, 2, 4), SlotRange(8, 1, 0, 0, 1), SlotRange(5, 2, 2, 0, 4)]
        with self.opened() as store, self.attached(store) as other:
            parity, sums = self.written(store, 1, *ranges)
            for view in (store, other):
                self.check_holds(view, ranges, parity, sums)
                backwards = np.r_[3:7, 2, 0:2]
                self.check_holds(view, ranges[::-1], parity[backwards], sums[backwards])
                assert view.committed(8, 1, 0).tolist() == [True, False, False, False], "more than slot 0 of block 8"

    def test_no_slots_are_no_write(self) -> None:
        with self.opened() as store:
            parity, sums = self.written(store, 0, OLD)
            self.written(store, 1)
            self.written(store, 1, SlotRange(9, 5, 2, 2, 2))
            assert store.committed_slots([]).shape == (0,), "no ranges have no slots"
            self.check_holds(store, [OLD], parity, sums)

    def test_another_generation_does_not_count(self) -> None:
        with self.opened() as store:
            self.written(store, 0, OLD)
            for generation in (4, 6, 0, 2**32 - 1):
                self.check_nothing(store, SlotRange(9, generation, 2, 0, 4))

    def test_another_block_or_place_does_not_count(self) -> None:
        with self.opened() as store:
            self.written(store, 0, OLD)
            for block, place in ((8, 2), (0, 2), (9, 1), (9, 3)):
                self.check_nothing(store, SlotRange(block, 5, place, 0, 4))

    def test_reuse_takes_the_older_generation_away(self) -> None:
        with self.opened() as store:
            parity, sums = self.written(store, 0, OLD)
            new = SlotRange(9, 6, 2, 1, 2)
            newer, newer_sums = self.written(store, 1, new)
            self.check_holds(store, [new], newer, newer_sums)
            assert store.committed(9, 6, 2).tolist() == [False, True, False, False], "only slot 1 was written anew"
            self.check_nothing(store, OLD.part(1, 2))
            self.check_holds(store, [OLD.part(2, 4)], parity[1:], sums[1:])

    def test_slots_that_are_not_written_stay_as_they_were(self) -> None:
        with self.opened() as store:
            parity, sums = self.written(store, 0, OLD)
            more, more_sums = self.written(store, 1, OLD.part(0, 1))
            last, last_sums = self.written(store, 2, OLD.part(3, 4))
            self.check_holds(
                store,
                [OLD.part(0, 4)],
                np.concatenate([more, parity[:2], last]),
                np.concatenate([more_sums, sums[:2], last_sums]),
            )

    def test_writing_again_is_the_last_write(self) -> None:
        with self.opened() as store:
            for seed in (0, 1, 1):
                parity, sums = self.written(store, seed, OLD)
                self.check_holds(store, [OLD], parity, sums)

    def test_a_full_store_holds_every_slot_apart(self) -> None:
        g = self.geometry
        ranges = [SlotRange(100 + place, place, place, 0, g.block_size) for place in range(g.num_parity_blocks)]
        with self.opened() as store:
            parity, sums = self.written(store, 0, *ranges)
            self.check_holds(store, ranges, parity, sums)
            rows = store.store_rows(ranges).tolist()
            assert sorted(set(rows)) == list(range(g.num_slots)), f"{g.num_slots} slots stand in rows {rows}"
            for place, changed in enumerate(ranges):
                part = slice(place * g.block_size, (place + 1) * g.block_size)
                parity[part], sums[part] = self.written(store, 1 + place, changed)
                self.check_holds(store, ranges, parity, sums)

    def test_the_caller_s_buffers_are_free_after_write(self) -> None:
        """Also where the commit comes with `settle`: an encoder uses one buffer for all tiles."""
        first, second = OLD.part(0, 2), OLD.part(2, 4)
        with self.opened() as store:
            parity, sums = self.content(0, 2)
            more, more_sums = self.content(1, 2)
            buffer, sum_buffer = parity.copy(), sums.copy()
            store.write(EPOCH, [first], buffer, sum_buffer)
            buffer[:], sum_buffer[:] = more, more_sums
            store.write(EPOCH, [second], buffer, sum_buffer)
            buffer[:], sum_buffer[:] = 0xA5, 0xA5
            store.settle(EPOCH)
            self.check_holds(store, [first, second], np.concatenate([parity, more]), np.concatenate([sums, more_sums]))

    def test_settling_again_changes_nothing(self) -> None:
        with self.opened() as store:
            store.settle(EPOCH)
            parity, sums = self.written(store, 0, OLD)
            store.begin(EPOCH, OLD.part(1, 2))
            store.settle(EPOCH)
            self.check_nothing(store, OLD.part(1, 2))
            self.check_holds(store, [OLD.part(2, 4)], parity[1:], sums[1:])
