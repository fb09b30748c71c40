"""The parity store, its geometry, and the slots it protects. Knows no engine and no framework."""

from ghostserve.parity.arena import Arena, HostArena
from ghostserve.parity.budget import Assignment, ParityBudget
from ghostserve.parity.geometry import CacheLayout, Segment, ShardMap, StoreGeometry
from ghostserve.parity.memory import SharedRegion
from ghostserve.parity.paging import gather, scatter
from ghostserve.parity.ranges import SlotRange, num_slots
from ghostserve.parity.store import ParityStore

__all__ = [
    "Arena",
    "Assignment",
    "CacheLayout",
    "HostArena",
    "ParityBudget",
    "ParityStore",
    "Segment",
    "ShardMap",
    "SharedRegion",
    "SlotRange",
    "StoreGeometry",
    "gather",
    "num_slots",
    "scatter",
]
