"""Fences: nothing of another epoch changes anything."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from ghostserve.errors import StaleEpochError
from ghostserve.parity import ParityStore
from ghostserve.testing.stores.base import EPOCH, OLD, StoreSuite

__all__ = ["Epochs"]


class Epochs(StoreSuite):
    def test_the_epoch_is_shared_and_never_goes_back(self) -> None:
        with self.opened() as store, self.attached(store) as other:
            assert (store.epoch, other.epoch) == (EPOCH, EPOCH), f"made under {EPOCH}: {store.epoch}, {other.epoch}"
            for epoch in (EPOCH + 5, EPOCH + 5):
                store.advance(epoch)
                assert (store.epoch, other.epoch) == (epoch, epoch), f"at {epoch}: {store.epoch}, {other.epoch}"
            with pytest.raises(StaleEpochError) as error:
                store.advance(EPOCH + 4)
            self.check_stale(error.value, found=EPOCH + 5, expected=EPOCH + 4)
            assert store.epoch == EPOCH + 5, f"the epoch went back to {store.epoch}"

    def test_writers_of_an_older_epoch_change_nothing(self) -> None:
        self._check_refused(EPOCH - 1)

    def test_writers_of_a_later_epoch_change_nothing(self) -> None:
        """One that the group has not come to: its writer was told by somebody else."""
        self._check_refused(EPOCH + 1)

    def test_a_fence_while_the_payload_is_copied_leaves_it_uncommitted(self) -> None:
        with self.opened() as store, self.attached(store) as writer:
            parity, sums = self.content(0, 3)

            def flush() -> None:
                writer.write(EPOCH, OLD, _fencing(parity, store), sums)
                writer.settle(EPOCH)

            with pytest.raises(StaleEpochError):
                flush()
            assert store.epoch == EPOCH + 1, "the store never read the payload that it was given"
            writer.settle(EPOCH + 1)
            self.check_nothing(store, OLD)

    def test_a_fence_before_the_end_of_a_flush(self) -> None:
        """What `write` committed stays; what it left to `settle` is refused, and no later `settle` commits it."""
        with self.opened() as store, self.attached(store) as writer:
            parity, sums = self.content(0, 3)
            writer.write(EPOCH, OLD, parity, sums)
            early = bool(store.committed_slots([OLD]).all())
            store.advance(EPOCH + 1)
            if early:
                writer.settle(EPOCH)
            else:
                with pytest.raises(StaleEpochError):
                    writer.settle(EPOCH)
            writer.settle(EPOCH + 1)
            if early:
                self.check_holds(store, [OLD], parity, sums)
            else:
                self.check_nothing(store, OLD)

    def test_what_is_left_of_an_older_epoch_is_not_committed_by_the_next(self) -> None:
        with self.opened() as store, self.attached(store) as writer:
            writer.write(EPOCH, OLD, *self.content(0, 3))
            early = bool(store.committed_slots([OLD]).all())
            store.advance(EPOCH + 1)
            new = OLD.part(3, 4)
            parity, sums = self.written(writer, 1, new, epoch=EPOCH + 1)
            self.check_holds(store, [new], parity, sums)
            assert store.committed_slots([OLD.part(1, 3)]).all() == early, "an old epoch's slots were committed late"

    def test_after_a_fence_the_new_epoch_writes_and_the_old_content_stays(self) -> None:
        with self.opened() as store, self.attached(store) as writer:
            parity, sums = self.written(writer, 0, OLD)
            store.advance(EPOCH + 1)
            self.check_holds(writer, [OLD], parity, sums)
            parity[1:2], sums[1:2] = self.written(writer, 1, OLD.part(2, 3), epoch=EPOCH + 1)
            self.check_holds(writer, [OLD], parity, sums)

    def _check_refused(self, epoch: int) -> None:
        with self.opened() as store:
            parity, sums = self.written(store, 0, OLD)
            calls: tuple[Callable[[], object], ...] = (
                lambda: store.write(epoch, OLD, *self.content(1, 3)),
                lambda: store.begin(epoch, OLD),
                lambda: store.commit(epoch, OLD, self.content(1, 3)[1]),
            )
            for refused in calls:
                with pytest.raises(StaleEpochError) as error:
                    refused()
                self.check_stale(error.value, found=EPOCH, expected=epoch)
            store.settle(EPOCH)
            self.check_holds(store, [OLD], parity, sums)


def _fencing(parity: NDArray[np.uint8], store: ParityStore) -> Any:
    """Parity that raises the group's epoch when its bytes are read."""
    return _Fencing(parity, store)


class _Fencing:
    """As far as a writer can see, an array: its shape is free to ask for, its bytes are not."""

    def __init__(self, array: NDArray[np.uint8], store: ParityStore) -> None:
        self._array, self._store = array, store
        self.shape, self.dtype, self.ndim = array.shape, array.dtype, array.ndim

    def __len__(self) -> int:
        return len(self._array)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[np.uint8]:
        return self._read()

    def __getitem__(self, key: Any) -> Any:
        return self._read()[key]

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # what NumPy asks for to find out what this is: not yet its bytes
            raise AttributeError(name)
        return getattr(self._array if name in ("size", "nbytes") else self._read(), name)

    def _read(self) -> NDArray[np.uint8]:
        self._store.advance(max(self._store.epoch, EPOCH + 1))
        return self._array
