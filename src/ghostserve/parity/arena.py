"""A rank's KV cache as the core sees it: slots can be read from it and written to it, wherever its bytes lie."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ghostserve.parity import paging
from ghostserve.parity.geometry import CacheLayout
from ghostserve.parity.ranges import SlotRange

__all__ = ["Arena", "HostArena"]

Bytes = NDArray[np.uint8]


class Arena(Protocol):
    """One rank's paged cache, this process's own or a peer's that it can reach."""

    @property
    def nbytes(self) -> int:
        """Bytes of the arena, at least the layout's `total_bytes`."""

    def gather(self, layout: CacheLayout, ranges: Sequence[SlotRange], out: Bytes | None = None) -> Bytes:
        """The data shards of the slots of `ranges`, uint8 (S, slot_bytes) in host memory, token-major.

        `out`, where given, is filled and returned. Raises `ValueError` for slots outside the layout, an arena that is
        too small or an `out` of another shape.
        """

    def scatter(self, layout: CacheLayout, ranges: Sequence[SlotRange], shards: Bytes) -> None:
        """Write `shards`, uint8 (S, slot_bytes), to the slots of `ranges`: the inverse of `gather`."""


class HostArena:
    """An arena in host memory; every process that maps it can read and write it."""

    def __init__(self, array: Bytes) -> None:
        """`array`: uint8 (at least layout.total_bytes,); kept, not copied."""
        self.array = array

    @property
    def nbytes(self) -> int:
        return self.array.nbytes

    def gather(self, layout: CacheLayout, ranges: Sequence[SlotRange], out: Bytes | None = None) -> Bytes:
        """See `Arena.gather`. Releases the GIL."""
        return paging.gather(self.array, layout, ranges, out)

    def scatter(self, layout: CacheLayout, ranges: Sequence[SlotRange], shards: Bytes) -> None:
        """See `Arena.scatter`. Releases the GIL."""
        paging.scatter(self.array, layout, ranges, shards)
