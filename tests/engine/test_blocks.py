import pytest
from hypothesis import given
from hypothesis import strategies as st

from ghostserve.engine.blocks import BlockManager
from ghostserve.errors import GhostServeError


def test_freed_blocks_rest_until_the_watermark_has_passed():
    blocks = BlockManager(4, 16)
    taken = blocks.allocate(3)
    assert (blocks.num_free, blocks.usage) == (1, 0.75)
    blocks.free(taken, last_step=5)
    assert blocks.has_resting
    blocks.reclaim(4)
    assert blocks.num_free == 1
    blocks.reclaim(5)
    assert blocks.num_free == 4
    assert not blocks.has_resting


def test_each_reuse_is_a_new_generation():
    blocks = BlockManager(1, 16)
    for generation in range(1, 4):
        (block,) = blocks.allocate(1)
        assert blocks.generation(block) == generation
        blocks.free([block], 0)
        blocks.reclaim(0)


def test_more_than_is_free_is_refused_and_takes_nothing():
    blocks = BlockManager(2, 16)
    with pytest.raises(GhostServeError, match="3 blocks asked for, 2 are free"):
        blocks.allocate(3)
    assert blocks.num_free == 2


def test_needed_rounds_up():
    assert [BlockManager(1, 16).needed(n) for n in (0, 1, 16, 17)] == [0, 1, 1, 2]


def test_to_free_nothing_leaves_nothing_resting():
    blocks = BlockManager(2, 16)
    blocks.free([], 9)
    assert not blocks.has_resting


@given(st.lists(st.tuples(st.integers(0, 3), st.booleans()), max_size=40))
def test_no_block_has_two_owners_and_none_is_lost(moves):
    blocks, owned = BlockManager(6, 4), []
    resting = {}
    for step, (count, give_back) in enumerate(moves, 1):
        if give_back and owned:
            freed = owned.pop()
            blocks.free(freed, step)
            resting |= dict.fromkeys(freed, step)
        elif count <= blocks.num_free:
            owned.append(blocks.allocate(count))
        blocks.reclaim(step - 3)
        resting = {block: last for block, last in resting.items() if last > step - 3}
        held = [block for part in owned for block in part]
        assert len(set(held)) == len(held)
        assert not set(held) & resting.keys(), "a block that rests was handed out"
        assert blocks.num_free == 6 - len(held) - len(resting)
