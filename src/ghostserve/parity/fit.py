"""Do a store, a code, a cache and its ranks belong together?"""

from collections.abc import Sequence

from ghostserve.codes import Code
from ghostserve.errors import StoreMismatchError
from ghostserve.parity.arena import Arena
from ghostserve.parity.geometry import CacheLayout, ShardMap, StoreGeometry

__all__ = ["check_fit"]


def check_fit(
    geometry: StoreGeometry,
    code: Code,
    layout: CacheLayout,
    shard_map: ShardMap,
    arenas: Sequence[Arena],
) -> None:
    """Raise `StoreMismatchError`, naming both numbers, where the parts differ.

    Raises `UnsupportedCodeError` if `code` can't cut this layout's slots into its rows.
    """
    pairs = (
        ("data shards", "the code", code.n, geometry.num_data),
        ("parity shards", "the code", code.k, geometry.num_parity),
        ("data shards", "the shard map", shard_map.num_shards, geometry.num_data),
        ("slots a block", "the cache layout", layout.block_size, geometry.block_size),
        ("bytes a slot", "the cache layout", layout.slot_bytes, geometry.slot_bytes),
    )
    for what, whose, found, expected in pairs:
        if found != expected:
            raise StoreMismatchError(f"{whose} has {found} {what}, the parity store {expected}")
    if len(arenas) != shard_map.world_size:
        raise StoreMismatchError(f"{len(arenas)} arenas were given for {shard_map.world_size} ranks")
    code.check_slot_bytes(layout.slot_bytes)
