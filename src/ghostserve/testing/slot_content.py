"""What one slot of a store holds, as plain bytes."""

import random
from collections.abc import Collection
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ghostserve.parity import ParityStore, SlotRange, StoreGeometry

__all__ = ["Content", "arrays", "draw", "read"]


class Content(NamedTuple):
    """Whose the slot is, its parity shards one after the other, and its checksums, whatever they may mean."""

    block: int
    generation: int
    parity: bytes
    sums: bytes


def draw(g: StoreGeometry, number: int, block: int, generation: int) -> Content:
    """Noise, another one for each `number`."""
    noise = random.Random(number)
    parity, sums = noise.randbytes(g.num_parity * g.slot_bytes), noise.randbytes(8 * (g.num_data + g.num_parity))
    return Content(block, generation, parity, sums)


def arrays(g: StoreGeometry, slots: Collection[Content]) -> tuple[NDArray[np.uint8], NDArray[np.uint64]]:
    """What `ParityStore.write` takes: parity uint8 (S, K, slot_bytes) and checksums uint64 (S, N+K)."""
    parity = np.frombuffer(b"".join(slot.parity for slot in slots), np.uint8)
    sums = np.frombuffer(b"".join(slot.sums for slot in slots), np.uint64)
    return parity.reshape(-1, g.num_parity, g.slot_bytes), sums.reshape(len(slots), -1)


def read(view: ParityStore, asked: SlotRange) -> list[Content | None]:
    """Each slot of the whole block `asked`, None where it is not committed; every way to read must say the same."""
    committed = view.committed(asked.block, asked.generation, asked.parity_block).tolist()
    parity, sums = view.payload([asked]), view.records([asked])
    shards = [view.parity_shard([asked], index) for index in range(parity.shape[1])]
    found: list[Content | None] = []
    for slot, there in enumerate(committed):
        alone = b"".join(shard[slot].tobytes() for shard in shards)
        assert alone == parity[slot].tobytes(), f"slot {slot} of {asked}: its shards differ when they are read alone"
        content = Content(asked.block, asked.generation, alone, sums[slot].tobytes())
        found.append(content if there else None)
    return found
