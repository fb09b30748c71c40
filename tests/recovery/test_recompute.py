"""Recomputed bytes are believed only where they match; a survivor never keeps others."""

import numpy as np
import pytest

from ghostserve.checkpoint.encoding import encode_ranges
from ghostserve.codes import make_backend, make_code
from ghostserve.parity.arena import HostArena
from ghostserve.parity.geometry import CacheLayout, ShardMap, StoreGeometry
from ghostserve.parity.ranges import SlotRange
from ghostserve.parity.store import ParityStore
from ghostserve.recovery.recompute import recompute

LAYOUT = CacheLayout.layered(num_layers=2, num_blocks=4, block_size=8, row_bytes=16)
RANGES = (SlotRange(1, 1, 0, 0, 8), SlotRange(3, 1, 1, 0, 5))


class World:
    def __init__(self) -> None:
        rng = np.random.default_rng(3)
        self.arenas = [HostArena(rng.integers(0, 256, LAYOUT.total_bytes, dtype=np.uint8)) for _ in range(2)]
        code = make_code("rs:1", 2)
        assert code is not None
        self.backend = make_backend()
        self.store = ParityStore.create(StoreGeometry(2, 1, 2, 8, LAYOUT.slot_bytes))
        encode_ranges(
            store=self.store, code=code, backend=self.backend, arenas=self.arenas, layout=LAYOUT,
            shard_map=ShardMap(2, 2), epoch=1, ranges=RANGES,
        )  # fmt: skip

    def run_again(self, wrote: np.ndarray, *, keep: bool, error: Exception | None = None) -> bool:
        def run() -> None:
            self.arenas[1].scatter(LAYOUT, RANGES, wrote)
            if error is not None:
                raise error

        return recompute(
            store=self.store, backend=self.backend, arena=self.arenas[1], layout=LAYOUT, shard=1, ranges=RANGES,
            run=run, keep=keep,
        )  # fmt: skip

    def now(self) -> np.ndarray:
        return self.arenas[1].gather(LAYOUT, RANGES)


@pytest.mark.parametrize("keep", [True, False])
def test_the_same_bits_are_accepted(keep: bool) -> None:
    world = World()
    right = world.now()
    if not keep:
        world.arenas[1].array[:] = 0xFF
    assert world.run_again(right, keep=keep)
    assert np.array_equal(world.now(), right)


def test_one_other_bit_is_not_and_a_survivor_gets_its_own_back() -> None:
    world = World()
    right = world.now()
    wrong = right.copy()
    wrong[7, 3] ^= 1
    assert not world.run_again(wrong, keep=True)
    assert np.array_equal(world.now(), right)
    assert not world.run_again(wrong, keep=False)
    assert np.array_equal(world.now(), wrong)  # nothing to put back: it is the caller's to rebuild


def test_a_step_that_breaks_off_leaves_a_survivor_as_it_was() -> None:
    world = World()
    right = world.now()
    with pytest.raises(ConnectionError):
        world.run_again(np.zeros_like(right), keep=True, error=ConnectionError("a peer died"))
    assert np.array_equal(world.now(), right)


def test_slots_that_are_not_committed_are_never_accepted() -> None:
    world = World()
    right = world.now()
    world.store.begin(1, RANGES[1:])
    assert not world.run_again(right, keep=True)
