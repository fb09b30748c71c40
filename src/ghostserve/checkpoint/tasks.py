"""What the coordinator asks an encoder to do."""

import msgspec

from ghostserve.parity.ranges import SlotRange

__all__ = ["FlushTask"]


class FlushTask(msgspec.Struct, frozen=True, array_like=True):
    """Rank `encoder` encodes and commits the slots of `ranges` once `step` has run."""

    task_id: int
    step: int
    encoder: int
    ranges: tuple[SlotRange, ...]
