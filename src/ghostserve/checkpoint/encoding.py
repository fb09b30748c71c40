"""Encoding slots and committing them: what a flush does, in the calling thread."""

from collections.abc import Callable, Collection, Sequence

import numpy as np

from ghostserve.codes import Backend, Code
from ghostserve.parity.arena import Arena
from ghostserve.parity.fit import check_fit
from ghostserve.parity.geometry import CacheLayout, ShardMap
from ghostserve.parity.ranges import SlotRange, num_slots, tiles
from ghostserve.parity.store import ParityStore

__all__ = ["encode_ranges"]

# Small enough that gathered shards are still in the processor's cache when they are encoded and summed.
TILE_SLOTS = 64


def encode_ranges(
    *,
    store: ParityStore,
    code: Code,
    backend: Backend,
    arenas: Sequence[Arena],
    layout: CacheLayout,
    shard_map: ShardMap,
    epoch: int,
    ranges: Sequence[SlotRange],
    dead: Collection[int] = (),
    on_stage: Callable[[str], None] = lambda stage: None,
) -> None:
    """Read every data shard of `ranges` from its holder's arena, encode, and commit under `epoch`.

    `arenas`: one a rank, read one-sided: their owners take no part. Those of
    `dead` ranks are not read. `on_stage` is called for each tile with "begin", "encoded" (computed, not
    written) and "committed" (where the store commits at the end of a flush: written). Raises `StaleEpochError`
    once the group has left `epoch` (tiles committed before stay committed), `StoreMismatchError` if the parts do
    not belong together, and `ValueError` where a shard has no live holder or a slot does not exist.
    """
    check_fit(store.geometry, code, layout, shard_map, arenas)
    holders = shard_map.holders(dead)
    if len(holders) < code.n:
        raise ValueError(f"data shards {list(shard_map.lost_shards(dead))} have no live holder: nothing to encode")
    # One buffer for all tiles: fresh memory for each would cost more in page faults than the encoding does.
    room = min(TILE_SLOTS, num_slots(ranges))
    shard_room = np.empty((code.n, room, layout.slot_bytes), dtype=np.uint8)
    parity_room = np.empty((room, code.k, layout.slot_bytes), dtype=np.uint8)
    for tile in tiles(ranges, TILE_SLOTS):
        on_stage("begin")
        slots = num_slots(tile)
        shards = [arenas[holders[shard]].gather(layout, tile, shard_room[shard, :slots]) for shard in range(code.n)]
        parity = parity_room[:slots]
        parity_shards = [parity[:, index] for index in range(code.k)]
        backend.run(code.encode_plan, shards, parity_shards)
        sums = np.stack([backend.checksums(shard) for shard in (*shards, *parity_shards)], axis=1)
        on_stage("encoded")
        store.write(epoch, tile, parity, sums)
        on_stage("committed")
    store.settle(epoch)
