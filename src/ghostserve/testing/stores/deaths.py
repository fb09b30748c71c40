"""The store outlives its writers, and whoever dies while writing leaves nothing false."""

import os
import signal
from typing import Any

from numpy.typing import NDArray

from ghostserve.parity import ParityStore, SlotRange
from ghostserve.testing.dying import cut_off, dies
from ghostserve.testing.stores.base import EPOCH, OLD, StoreSuite

__all__ = ["Deaths"]

Arr = NDArray[Any]


class Deaths(StoreSuite):
    def test_what_is_committed_survives_its_writer(self) -> None:
        """A process that is killed without having closed anything."""
        with self.opened() as store:
            parity, sums = self.content(0, 3)

            def write_and_die() -> None:
                writer = self.attach(store.fds, self.geometry)
                writer.write(EPOCH, OLD, parity, sums)
                writer.settle(EPOCH)
                os.kill(os.getpid(), signal.SIGKILL)

            assert dies(write_and_die), "the writer came back"
            self.check_holds(store, [OLD], parity, sums)
            with self.attached(store) as other:
                self.check_holds(other, [OLD], parity, sums)

    def test_what_is_committed_survives_its_maker(self) -> None:
        store = self.create(self.geometry, EPOCH)
        parity, sums = self.written(store, 0, OLD)
        heir = self.attach(store.fds, self.geometry)
        store.close()
        try:
            self.check_holds(heir, [OLD], parity, sums)
            assert heir.epoch == EPOCH, f"the epoch was {EPOCH}, the heir finds {heir.epoch}"
            with self.attached(heir) as third:
                parity, sums = self.written(third, 1, OLD)
                self.check_holds(heir, [OLD], parity, sums)
        finally:
            heir.close()

    def test_closing_twice_is_closing_once(self) -> None:
        with self.opened() as store:
            parity, sums = self.written(store, 0, OLD)
            other = self.attach(store.fds, self.geometry)
            other.close()
            other.close()
            self.check_holds(store, [OLD], parity, sums)
            parity, sums = self.written(store, 1, OLD)
            self.check_holds(store, [OLD], parity, sums)

    def test_a_writer_that_dies_in_the_payload_leaves_old_or_nothing(self) -> None:
        """Cut in every slot: whatever still counts has the bytes that it was committed with."""
        ranges = [SlotRange(9, 5, 2, 2, 4), SlotRange(7, 1, 2, 0, 1), SlotRange(9, 5, 2, 1, 2)]
        for generation in (5, 6):
            new = [SlotRange(r.block, r.generation + generation - 5, r.parity_block, r.start, r.stop) for r in ranges]
            parity, sums = self.content(1, 4)
            for keep in range(0, parity.nbytes, max(1, parity.nbytes // 9)):
                with self.opened() as store:
                    old, old_sums = self.written(store, 0, OLD)
                    self._check_dies(store, new, cut_off(parity, keep), sums)
                    self.check_nothing(store, new[1])
                    self._check_old_or_nothing(store, new, old, old_sums)
                    self._check_old_or_nothing(store, [OLD], old, old_sums)

    def test_a_writer_that_dies_in_the_checksums_leaves_old_or_nothing(self) -> None:
        parity, sums = self.content(1, 3)
        for keep in (0, sums.nbytes // 2, sums.nbytes - 1):
            with self.opened() as store:
                old, old_sums = self.written(store, 0, OLD)
                self._check_dies(store, [OLD], parity, cut_off(sums, keep))
                self._check_old_or_nothing(store, [OLD], old, old_sums)

    def test_what_a_death_left_is_written_again_under_the_next_epoch(self) -> None:
        with self.opened() as store:
            self.written(store, 0, OLD)
            parity, sums = self.content(1, 3)
            self._check_dies(store, [OLD], cut_off(parity, parity.nbytes // 2), sums)
            store.advance(EPOCH + 1)
            parity, sums = self.written(store, 1, OLD, epoch=EPOCH + 1)
            self.check_holds(store, [OLD], parity, sums)

    def _check_dies(self, store: ParityStore, ranges: list[SlotRange], parity: Arr, sums: Arr) -> None:
        def write() -> None:
            writer = self.attach(store.fds, self.geometry)
            writer.write(EPOCH, ranges, parity, sums)
            writer.settle(EPOCH)

        assert dies(write), "the writer came through a buffer that can't be read to its end"

    def _check_old_or_nothing(self, store: ParityStore, ranges: list[SlotRange], old: Arr, old_sums: Arr) -> None:
        """Slots of `ranges` that are committed hold what `OLD` held in them."""
        for r in ranges:
            for slot in range(r.start, r.stop):
                one = r.part(slot, slot + 1)
                if store.committed_slots([one]).all():
                    assert (r.block, r.generation) == (OLD.block, OLD.generation), f"{one} is committed, half written"
                    self.check_holds(store, [one], old[slot - 1 : slot], old_sums[slot - 1 : slot])
