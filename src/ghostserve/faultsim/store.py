"""The parity store with its writes taken apart in time, so that anything can happen between encoding and commit."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ghostserve.parity.ranges import SlotRange
from ghostserve.parity.store import ParityStore

__all__ = ["LateStore", "Write", "tear"]


@dataclass(frozen=True)
class Write:
    """What `ParityStore.write` takes; the arrays are copies."""

    epoch: int
    ranges: tuple[SlotRange, ...]
    parity: NDArray[np.uint8]
    checksums: NDArray[np.uint64]


class LateStore(ParityStore):
    """Keeps what is written to it until somebody `take`s it and writes it for real."""

    def write(
        self,
        epoch: int,
        ranges: SlotRange | Sequence[SlotRange],
        parity: NDArray[np.uint8],
        checksums: NDArray[np.uint64],
    ) -> None:
        asked = (ranges,) if isinstance(ranges, SlotRange) else tuple(ranges)
        self._kept.append(Write(epoch, asked, parity.copy(), checksums.copy()))

    @classmethod
    def beside(cls, store: ParityStore) -> "LateStore":
        """Attached to the memory of `store`."""
        late = cls.attach(store.region.fd, store.geometry)
        assert isinstance(late, LateStore)
        return late

    @property
    def _kept(self) -> list[Write]:
        kept: list[Write] = self.__dict__.setdefault("_late_writes", [])
        return kept

    def take(self) -> list[Write]:
        """What was written since the last time."""
        kept, self.__dict__["_late_writes"] = self._kept, []
        return kept


def tear(store: ParityStore, write: Write, cut: float) -> None:
    """Do the share `cut` (0 to 1) of a write's stores, the last of them in part: its writer dies just then."""
    if write.epoch != store.epoch:
        return
    stores = list(store._stores(write.ranges, write.parity, write.checksums))
    whole = min(int(cut * len(stores)), len(stores) - 1)
    for done in stores[:whole]:
        done.run()
    torn = stores[whole]
    rows = np.arange(torn.rows.start, torn.rows.stop) if isinstance(torn.rows, slice) else torn.rows
    some = int((cut * len(stores) - whole) * len(rows))
    torn.target[rows[:some]] = torn.source if torn.source.ndim == 0 else torn.source[:some]
