"""What every backend gives: it runs plans and takes checksums, and knows no code."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ghostserve.codes.base import Plan

__all__ = ["Backend"]


class Backend(Protocol):
    """Runs plans over slots in host memory. Thread-safe; a call uses one thread and does not hold the GIL."""

    name: str

    def run(self, plan: Plan, inputs: Sequence[NDArray[np.uint8]], outputs: Sequence[NDArray[np.uint8]]) -> None:
        """Compute the shards `plan.outputs` from `plan.inputs`, arrays in the same order.

        Every array is uint8 (S slots, B bytes), contiguous along B with any stride along S and any alignment;
        B must be a multiple of `plan.rows`. Outputs are overwritten wholly, whatever they hold before, and
        must not overlap inputs or each other. Raises `UnsupportedCodeError` for arrays that do not fit.
        """

    def checksums(self, data: NDArray[np.uint8]) -> NDArray[np.uint64]:
        """The checksum of each slot of uint8 (S, B): uint64 (S,), as `checksum_reference` gives them."""

    def warm_up(self, *, rows: int = 1, slot_bytes: int = 8) -> None:
        """Compile or load now what later calls need: checksums, and plans of so many rows over slots of that size."""
