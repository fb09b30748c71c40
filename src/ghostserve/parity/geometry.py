"""Where bytes lie: in a rank's KV arena, over the ranks, and in the parity store."""

from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from ghostserve.errors import ConfigError

__all__ = ["CacheLayout", "Segment", "ShardMap", "StoreGeometry"]

PAGE = 4096
HEADER_BYTES = PAGE
WORD = 8


@dataclass(frozen=True)
class Segment:
    """Where one row (one layer's K or V of one slot) lies in a rank's arena; everything in bytes.

    The row of (block, slot) is the `nbytes` bytes from `offset + block * block_stride + slot * slot_stride`
    on.
    """

    offset: int
    block_stride: int
    slot_stride: int
    nbytes: int


@dataclass(frozen=True)
class CacheLayout:
    """The paged cache of one rank.

    `segments` stand in token-major order: (layer 0, K), (layer 0, V), (layer 1, K), ...

    Raises `ConfigError` for a layout without blocks, slots or bytes, or one that reaches below byte 0.
    """

    num_blocks: int
    block_size: int
    segments: tuple[Segment, ...]

    def __post_init__(self) -> None:
        _positive(
            "cache layout",
            num_blocks=self.num_blocks,
            block_size=self.block_size,
            segments=len(self.segments),
        )
        for segment in self.segments:
            _positive("cache segment", nbytes=segment.nbytes)
            if min(segment.offset, segment.block_stride, segment.slot_stride) < 0:
                raise ConfigError(f"{segment} has a negative offset or stride; arenas begin at byte 0")

    @classmethod
    def layered(cls, num_layers: int, num_blocks: int, block_size: int, row_bytes: int) -> "CacheLayout":
        """The usual cache: [layer][K|V][block][slot][row_bytes], contiguous."""
        block_bytes = block_size * row_bytes
        segments = tuple(
            Segment(i * num_blocks * block_bytes, block_bytes, row_bytes, row_bytes) for i in range(2 * num_layers)
        )
        return cls(num_blocks, block_size, segments)

    @cached_property
    def segment_table(self) -> NDArray[np.int64]:
        """The segments as rows (offset, block_stride, slot_stride, nbytes), int64 (segments, 4)."""
        rows = [(s.offset, s.block_stride, s.slot_stride, s.nbytes) for s in self.segments]
        return np.array(rows, dtype=np.int64)

    @cached_property
    def slot_bytes(self) -> int:
        """Bytes of one slot's data shard: all layers, K and V."""
        return sum(s.nbytes for s in self.segments)

    @cached_property
    def total_bytes(self) -> int:
        """Bytes that an arena of this layout must have."""
        last_block, last_slot = self.num_blocks - 1, self.block_size - 1
        return max(s.offset + last_block * s.block_stride + last_slot * s.slot_stride + s.nbytes for s in self.segments)


@dataclass(frozen=True)
class ShardMap:
    """Which rank holds which data shard.

    Where TP is wider than the KV heads, consecutive ranks hold the same one.

    Raises `ConfigError` unless `num_shards` divides `world_size`.
    """

    world_size: int
    num_shards: int

    def __post_init__(self) -> None:
        _positive("shard map", world_size=self.world_size, num_shards=self.num_shards)
        if self.world_size % self.num_shards:
            raise ConfigError(
                f"{self.world_size} ranks can't hold {self.num_shards} data shards evenly: "
                f"the number of shards must divide the number of ranks"
            )

    @classmethod
    def for_kv_heads(cls, world_size: int, kv_heads: int) -> "ShardMap":
        """The map that TP over `kv_heads` KV heads makes; `ConfigError` if they can't be shared out."""
        _positive("shard map", world_size=world_size, kv_heads=kv_heads)
        if kv_heads >= world_size and kv_heads % world_size == 0:
            return cls(world_size, world_size)
        if kv_heads < world_size and world_size % kv_heads == 0:
            return cls(world_size, kv_heads)
        raise ConfigError(
            f"{kv_heads} KV heads can't be shared out over {world_size} ranks: "
            f"one of the two numbers must be a multiple of the other"
        )

    @property
    def copies(self) -> int:
        """Ranks that hold the same shard; 1 without replication."""
        return self.world_size // self.num_shards

    def shard_of(self, rank: int) -> int:
        """The data shard that `rank` holds."""
        if not 0 <= rank < self.world_size:
            raise ValueError(f"rank {rank} does not exist: ranks are 0..{self.world_size - 1}")
        return rank * self.num_shards // self.world_size

    def ranks_of(self, shard: int) -> tuple[int, ...]:
        """The ranks that hold `shard`, ascending."""
        if not 0 <= shard < self.num_shards:
            raise ValueError(f"shard {shard} does not exist: data shards are 0..{self.num_shards - 1}")
        return tuple(range(shard * self.copies, (shard + 1) * self.copies))

    def live_ranks_of(self, shard: int, lost_ranks: Collection[int]) -> tuple[int, ...]:
        """The ranks that hold `shard` and are not lost, ascending."""
        return tuple(r for r in self.ranks_of(shard) if r not in lost_ranks)

    def lost_shards(self, lost_ranks: Collection[int]) -> tuple[int, ...]:
        """The shards all of whose holders are lost, ascending."""
        return tuple(s for s in range(self.num_shards) if not self.live_ranks_of(s, lost_ranks))

    def copy_source(self, rank: int, lost_ranks: Collection[int]) -> int | None:
        """Another rank that is not lost and holds the same bytes as `rank`, or None."""
        others = (r for r in self.live_ranks_of(self.shard_of(rank), lost_ranks) if r != rank)
        return next(others, None)

    def holders(self, lost_ranks: Collection[int] = ()) -> dict[int, int]:
        """For each shard that is not lost, the rank to read it from."""
        live = {s: self.live_ranks_of(s, lost_ranks) for s in range(self.num_shards)}
        return {s: ranks[0] for s, ranks in live.items() if ranks}


@dataclass(frozen=True)
class StoreGeometry:
    """Shape of a parity store: header | records | payload, one parity block for each protected cache block.

    `slot_bytes` is the length of one slot's data shard, hence of one slot's parity shard.
    """

    num_data: int
    num_parity: int
    num_parity_blocks: int
    block_size: int
    slot_bytes: int

    def __post_init__(self) -> None:
        _positive("parity store", **vars(self))

    @property
    def num_slots(self) -> int:
        return self.num_parity_blocks * self.block_size

    @property
    def record_words(self) -> int:
        """uint64 words of one slot's record: a checksum for each shard, the identity, the commit word."""
        return self.num_data + self.num_parity + 2

    @property
    def record_bytes(self) -> int:
        """Bytes of all records."""
        return self.num_slots * self.record_words * WORD

    @property
    def payload_bytes(self) -> int:
        """Bytes of parity."""
        return self.num_slots * self.num_parity * self.slot_bytes

    @property
    def records_offset(self) -> int:
        return HEADER_BYTES

    @property
    def payload_offset(self) -> int:
        """Page-aligned, so that a device can pin the payload alone."""
        return self.records_offset + -(-self.record_bytes // PAGE) * PAGE

    @property
    def total_bytes(self) -> int:
        return self.payload_offset + self.payload_bytes


def _positive(what: str, **values: int) -> None:
    for name, value in values.items():
        if value <= 0:
            raise ConfigError(f"{what}: {name} is {value}, it must be at least 1")
