"""A writer that ends after any store to the shared memory, or inside one, as the next process to attach finds it.

A flush stores: commit words cleared, payload, records, commit words. A device's flush is `begin`, its own copies,
`commit`: the same stores from another hand. Whatever the cut, a slot counts only with bytes that were meant for it.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import pytest

from ghostserve.errors import StaleEpochError
from ghostserve.parity import ParityStore, SlotRange, StoreGeometry
from ghostserve.parity.ranges import num_slots, singles
from ghostserve.parity.store import Store

GEOMETRY = StoreGeometry(num_data=3, num_parity=2, num_parity_blocks=4, block_size=4, slot_bytes=16)
EPOCH = 3
SHARES = (0.0, 0.01, 0.3, 0.5, 0.77, 0.99, 1.0)
"""Of a store's bytes: also cuts inside a word, a slot and a record."""


class Use(NamedTuple):
    """What is in the store before, and what the writer that is cut off was writing."""

    before: tuple[SlotRange, ...]
    after: tuple[SlotRange, ...]


USES = {
    "a fresh block": Use((), (SlotRange(9, 1, 2, 0, 4),)),
    "a part-filled tail grows": Use((SlotRange(9, 1, 2, 0, 2),), (SlotRange(9, 1, 2, 2, 3),)),
    "a tail is written again": Use((SlotRange(9, 1, 2, 0, 3),), (SlotRange(9, 1, 2, 1, 4),)),
    "an older generation goes": Use((SlotRange(9, 1, 2, 0, 4),), (SlotRange(9, 2, 2, 0, 3),)),
    "another block takes the place": Use((SlotRange(9, 1, 2, 0, 4),), (SlotRange(7, 1, 2, 0, 4),)),
    "several blocks in one write": Use(
        (SlotRange(9, 1, 2, 0, 4), SlotRange(5, 1, 0, 0, 2)), (SlotRange(9, 2, 2, 0, 4), SlotRange(5, 1, 0, 2, 4))
    ),
}


def content(seed: int, ranges: Sequence[SlotRange]) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    shape = (num_slots(ranges), GEOMETRY.num_parity, GEOMETRY.slot_bytes)
    return (
        rng.integers(0, 256, shape, dtype=np.uint8),
        rng.integers(0, 2**64, (shape[0], GEOMETRY.num_data + GEOMETRY.num_parity), dtype=np.uint64),
    )


def tear(store: Store, share: float) -> None:
    """The first `share` of a store's bytes, in the order of their addresses."""
    merged = store.target[store.rows].copy()
    wanted = np.ascontiguousarray(np.broadcast_to(store.source, merged.shape).astype(merged.dtype))
    raw = merged.reshape(-1).view(np.uint8)
    cut = int(raw.size * share)
    raw[:cut] = wanted.reshape(-1).view(np.uint8)[:cut]
    store.target[store.rows] = merged


Stores = Callable[[ParityStore, Sequence[SlotRange], np.ndarray, np.ndarray], list[Store]]


def flush(store: ParityStore, ranges: Sequence[SlotRange], parity: np.ndarray, sums: np.ndarray) -> list[Store]:
    return list(store._stores(ranges, parity, sums))


def commit(store: ParityStore, ranges: Sequence[SlotRange], parity: np.ndarray, sums: np.ndarray) -> list[Store]:
    """What a device does: `begin`, one copy a slot in any order, `commit`."""
    rows = store._rows(ranges)
    copies = [
        Store(store._payload, np.array([row]), parity[index : index + 1])
        for index, row in reversed(list(enumerate(store.store_rows(ranges))))
    ]
    return [store._clearing(rows), *copies, *store._recording(ranges, rows, sums)]


def seal_first(store: ParityStore, ranges: Sequence[SlotRange], parity: np.ndarray, sums: np.ndarray) -> list[Store]:
    """The twin: the records before the payload."""
    clear, payload, record, seal = store._stores(ranges, parity, sums)
    return [clear, record, seal, payload]


def cuts(use: Use, stores: Stores) -> Iterator[tuple[int, ParityStore, dict[SlotRange, tuple[np.ndarray, ...]]]]:
    """Each memory that a cut leaves, as another process attaches to it, and what may stand in it, by slot."""
    old, new = content(0, use.before), content(1, use.after)
    meant: dict[SlotRange, tuple[np.ndarray, ...]] = {}
    for ranges, (parity, sums) in ((use.before, old), (use.after, new)):
        for slot, shard, checks in zip(singles(ranges), parity, sums, strict=True):
            meant[slot] = (*meant.get(slot, ()), np.concatenate([shard.reshape(-1), checks.view(np.uint8)]))
    count = len(stores(ParityStore.create(GEOMETRY), use.after, *new))
    for step in range(count):
        for share in SHARES:
            writer = ParityStore.create(GEOMETRY, epoch=EPOCH)
            writer._payload[:] = 0xA5  # nobody's
            if use.before:
                writer.write(EPOCH, use.before, *old)
            work = stores(writer, use.after, *new)
            for whole in work[:step]:
                whole.run()
            tear(work[step], share)
            other = ParityStore.attach(writer.fds[0], GEOMETRY)
            writer.close()
            yield step, other, meant
            other.close()


def wrong(store: ParityStore, meant: dict[SlotRange, tuple[np.ndarray, ...]]) -> list[SlotRange]:
    """Slots that count as committed without bytes and checksums of one write that was meant for them."""
    found = []
    for slot, allowed in meant.items():
        held = np.concatenate([store.payload(slot).reshape(-1), store.records(slot).reshape(-1).view(np.uint8)])
        if store.committed_slots([slot]).all() and not any(np.array_equal(held, right) for right in allowed):
            found.append(slot)
    return found


@pytest.mark.parametrize("stores", [flush, commit])
@pytest.mark.parametrize("use", USES)
def test_after_any_cut_a_slot_is_committed_and_right_or_not_committed(use: str, stores: Stores) -> None:
    states = ended = 0
    for step, store, meant in cuts(USES[use], stores):
        assert wrong(store, meant) == [], f"cut in store {step}"
        # What the write has nothing to do with stays as it was.
        rows = set(store.store_rows(USES[use].after).tolist())
        for slot in singles(USES[use].before):
            if int(store.store_rows([slot])[0]) not in rows:
                assert store.committed_slots([slot]).all()
        ended += bool(store.committed_slots(USES[use].after).all())
        states += 1
    assert states >= 4 * len(SHARES)
    assert 1 <= ended < states, "the last cut is behind the last byte: then all is committed"


@pytest.mark.parametrize("use", ["an older generation goes", "a fresh block", "a tail is written again"])
def test_a_writer_that_seals_first_is_caught(use: str) -> None:
    assert any(wrong(store, meant) for _, store, meant in cuts(USES[use], seal_first))


@pytest.mark.parametrize("cut", range(4))
def test_what_a_cut_left_is_written_again_under_the_next_epoch(cut: int) -> None:
    """A recovery: the epoch goes on, the dead writer's tasks are sent again, and a writer of before is refused."""
    use = USES["an older generation goes"]
    writer = ParityStore.create(GEOMETRY, epoch=EPOCH)
    writer.write(EPOCH, use.before, *content(0, use.before))
    work = flush(writer, use.after, *content(1, use.after))
    for whole in work[:cut]:
        whole.run()
    tear(work[cut], 0.5)
    store = ParityStore.attach(writer.fds[0], GEOMETRY)
    store.advance(EPOCH + 1)
    before = store.region.array.copy()
    for refused in (
        lambda: writer.write(EPOCH, use.after, *content(2, use.after)),
        lambda: writer.begin(EPOCH, use.after),
        lambda: writer.commit(EPOCH, use.after, content(2, use.after)[1]),
    ):
        with pytest.raises(StaleEpochError):
            refused()
    assert np.array_equal(store.region.array, before)
    parity, sums = content(1, use.after)
    store.write(EPOCH + 1, use.after, parity, sums)
    assert store.committed_slots(use.after).all()
    assert np.array_equal(store.payload(use.after), parity)
    assert np.array_equal(store.records(use.after), sums)
    store.close()
    writer.close()
