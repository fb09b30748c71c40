"""Running again what once filled slots, and believing it only where the bits are the same."""

from collections.abc import Callable, Sequence

from ghostserve.codes import Backend
from ghostserve.parity.arena import Arena
from ghostserve.parity.geometry import CacheLayout
from ghostserve.parity.ranges import SlotRange
from ghostserve.parity.store import ParityStore

__all__ = ["recompute"]


def recompute(
    *,
    store: ParityStore,
    backend: Backend,
    arena: Arena,
    layout: CacheLayout,
    shard: int,
    ranges: Sequence[SlotRange],
    run: Callable[[], object],
    keep: bool,
) -> bool:
    """`run` writes the slots of `ranges` of this rank's `arena`; True if they then match the checksums of `shard`.

    `keep`: what they held before is right (a survivor's); unless they match it is put back, also where `run` raises.
    Of a lost rank there is nothing to put back: what does not match is left, and must be rebuilt.
    """
    before = arena.gather(layout, ranges) if keep else None
    right = False
    try:
        run()
        data = arena.gather(layout, ranges)
        sums = store.records(ranges)[:, shard]
        right = bool(store.committed_slots(ranges).all() and (backend.checksums(data) == sums).all())
    finally:
        if before is not None and not right:
            arena.scatter(layout, ranges, before)
    return right
