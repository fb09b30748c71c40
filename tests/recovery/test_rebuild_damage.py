"""Whatever byte flips, wherever: a rebuild gives the right bytes or reports the slot, and never wrong ones."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_rebuild import LAYOUT, RANGES, Group

from ghostserve.parity import gather, scatter
from ghostserve.parity.ranges import singles

SLOTS = list(singles(RANGES))
GROUPS = {"no replicas": (4, 4), "two copies": (4, 2), "three copies": (6, 2)}


@st.composite
def flips(draw, world):
    part = draw(st.sampled_from(["arena", "payload", "record"]))
    return (
        part,
        draw(st.integers(0, world - 1)),
        draw(st.sampled_from(SLOTS)),
        draw(st.integers(0, 2**20)),
        draw(st.integers(1, 255)),
    )


def damage(group, flip):
    part, rank, slot, place, mask = flip
    if part == "arena":
        data = gather(group.arenas[rank], LAYOUT, [slot])
        data[0, place % data.shape[1]] ^= mask
        scatter(group.arenas[rank], LAYOUT, [slot], data)
        return
    row = int(group.store.store_rows([slot])[0])
    target = {"payload": group.store._payload, "record": group.store._records}[part][row].reshape(-1).view(np.uint8)
    target[place % target.size] ^= mask


def wrong(group, report):
    """(rank, slot) that hold other bytes than they must and were not reported."""
    failed = set(singles(report.failed))
    return [
        (rank, slot) for rank in range(len(group.arenas)) for slot in SLOTS
        if slot not in failed and not group.whole(rank, [slot])
    ]  # fmt: skip


@pytest.mark.parametrize("kind", GROUPS)
@pytest.mark.parametrize("code", ["rs:1", "rs:2"])
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_right_bytes_or_a_reported_slot(code, kind, data):
    world, heads = GROUPS[kind]
    group = Group(code, world=world, heads=heads)
    lost = data.draw(st.integers(0, world - 1))
    for flip in data.draw(st.lists(flips(world), min_size=1, max_size=4)):
        damage(group, flip)
    report = group.rebuild(lost)
    assert wrong(group, report) == []
    for slot in singles(report.failed):
        assert group.poisoned(lost, [slot]) or group.whole(lost, [slot])
    group.store.close()


def test_a_rebuild_that_believes_everything_is_caught():
    """The twin: without checksums a flipped byte of a survivor becomes a wrong byte of the newcomer."""
    group = Group("rs:1")
    damage(group, ("arena", 1, SLOTS[3], 5, 0x10))

    class Trusting(type(group.store)):
        def records(self, ranges):
            return Anything()

    class Anything:
        def __getitem__(self, key):
            return self

        def __eq__(self, other):
            return np.ones(len(other), np.bool_)

        __array_ufunc__ = None
        __hash__ = None

    group.parts["store"] = Trusting.attach(group.store.region.fd, group.store.geometry)
    report = group.rebuild(0)
    assert (0, SLOTS[3]) in wrong(group, report)
