"""The kernels' readable reference: gather, run the plan by the book, put the results in their places."""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from ghostserve.codes.base import Plan
from ghostserve.codes.checksum import checksum_reference
from ghostserve.codes.reference import run_reference
from ghostserve.parity.geometry import CacheLayout
from ghostserve.parity.paging import gather
from ghostserve.parity.ranges import SlotRange

__all__ = ["naive_run"]

Bytes = NDArray[np.uint8]


def naive_run(
    plan: Plan,
    layout: CacheLayout,
    ranges: Sequence[SlotRange],
    arenas: Mapping[int, Bytes],
    flat: Mapping[int, Bytes],
) -> tuple[list[Bytes], NDArray[np.uint64]]:
    """What the kernel must give for these slots.

    `arenas[shard]`: uint8 (layout.total_bytes,) for paged inputs; `flat[shard]`: uint8 (S, slot_bytes) for token-major
    ones. Returns the outputs, uint8 (S, slot_bytes) each, and the checksums of inputs and outputs, uint64 (S, shards).
    """
    inputs = [gather(arenas[s], layout, ranges) if s in arenas else flat[s] for s in plan.inputs]
    outputs = run_reference(plan, inputs)
    return outputs, np.stack([checksum_reference(shard) for shard in (*inputs, *outputs)], axis=1)
