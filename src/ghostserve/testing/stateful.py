"""Any history of a store against a naive model, drawn by hypothesis.

The model is a dict: what each slot of each place may hold. It shares nothing with the store: no checksums, no records,
no arithmetic on rows; a block gets its place from a list of free ones.
"""

from collections.abc import Callable
from contextlib import suppress
from typing import NamedTuple

import pytest
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from ghostserve.errors import StaleEpochError
from ghostserve.parity import ParityStore, SlotRange, StoreGeometry
from ghostserve.testing.dying import cut_off, dies
from ghostserve.testing.slot_content import Content, arrays, draw, read

__all__ = ["StoreModel", "check_model"]

_WORKERS = 3
_WORKER = st.integers(0, _WORKERS - 1)
_PICK = st.tuples(st.integers(0, 9), st.integers(0, 9))
"""A reserved place and a run of its slots, however many there are."""
_PICKS = st.lists(_PICK, min_size=1, max_size=3)


class _Flush(NamedTuple):
    """Slots that a worker has written and not settled, each with what it is to hold."""

    epoch: int
    wanted: dict[tuple[int, int], Content]


class StoreModel(RuleBasedStateMachine):
    """Subclass it, give `create` and `attach`, and hand the class to `check_model`.

    Blocks are reserved and freed, workers write, settle, begin, die while they write and attach again, the group is
    fenced, and writers of other epochs try their luck. After each step everything is read from some view and must be
    something that the history allows.
    """

    def create(self, geometry: StoreGeometry, epoch: int = 1) -> ParityStore:
        """A new, empty store."""
        raise NotImplementedError(f"{type(self).__name__} must say how a store is made")

    def attach(self, fds: tuple[int, ...], geometry: StoreGeometry) -> ParityStore:
        """Another process's view of the store with these `fds`."""
        raise NotImplementedError(f"{type(self).__name__} must say how a store is attached")

    @initialize(
        data=st.integers(1, 3), parity=st.integers(1, 2), places=st.integers(1, 3), size=st.integers(1, 4),
        nbytes=st.sampled_from([1, 8, 24]), epoch=st.integers(1, 5),
    )  # fmt: skip
    def start(self, data: int, parity: int, places: int, size: int, nbytes: int, epoch: int) -> None:
        self.geometry = StoreGeometry(data, parity, places, size, nbytes)
        self.size, self.epoch = size, epoch
        self.store = self.create(self.geometry, epoch)
        self.workers = [self.attach(self.store.fds, self.geometry) for _ in range(_WORKERS)]
        self.unsettled: list[list[_Flush]] = [[] for _ in range(_WORKERS)]
        self.free = list(range(places))
        self.owner: dict[int, tuple[int, int]] = {}
        self.uses: dict[int, int] = {}
        self.owners: set[tuple[int, int, int]] = set()
        self.allowed: dict[tuple[int, int], set[Content | None]] = {
            (place, slot): {None} for place in range(places) for slot in range(size)
        }
        self.drawn = 0

    def teardown(self) -> None:
        for store in (*getattr(self, "workers", ()), *([self.store] if hasattr(self, "store") else [])):
            store.close()

    # ---- blocks

    @precondition(lambda self: self.free)
    @rule(block=st.integers(0, 4))
    def reserve(self, block: int) -> None:
        """Hand a free place to a new use of `block`."""
        if any(owner == block for owner, _ in self.owner.values()):
            return  # it has a place already
        self._hand_out(self.free.pop(0), block)

    @precondition(lambda self: self.owner)
    @rule(pick=st.integers(0, 9))
    def release(self, pick: int) -> None:
        """A use of a block is over; what it left stands in its place until somebody writes there."""
        place = sorted(self.owner)[pick % len(self.owner)]
        if not any(place == at for at, _ in self._waiting()):
            del self.owner[place]
            self.free.append(place)

    @precondition(lambda self: self.owner)
    @rule(pick=st.integers(0, 9), block=st.integers(0, 4), same=st.booleans())
    def use_again(self, pick: int, block: int, same: bool) -> None:
        """A place is handed on at once: only the block, or its generation, tells the uses apart."""
        place = sorted(self.owner)[pick % len(self.owner)]
        if not any(place == at for at, _ in self._waiting()):
            before, _ = self.owner.pop(place)
            taken = same or any(owner == block for owner, _ in self.owner.values())
            self._hand_out(place, before if taken else block)

    # ---- writers

    @precondition(lambda self: self.owner)
    @rule(worker=_WORKER, picks=_PICKS, settle=st.booleans())
    def write(self, worker: int, picks: list[tuple[int, int]], settle: bool) -> None:
        ranges, wanted = self._task(picks, worker)
        if not ranges:
            return
        self.workers[worker].write(self.epoch, ranges, *arrays(self.geometry, wanted.values()))
        for slot, content in wanted.items():
            self.allowed[slot] = {None, content}
        self.unsettled[worker].append(_Flush(self.epoch, wanted))
        if settle:
            self.settle(worker)

    @rule(worker=_WORKER)
    def settle(self, worker: int) -> None:
        """All that this worker wrote in the present epoch is committed; what is older may not become so."""
        self.workers[worker].settle(self.epoch)
        for flush in self.unsettled[worker]:
            if flush.epoch == self.epoch:
                for slot, content in flush.wanted.items():
                    self.allowed[slot] = {content}
        self.unsettled[worker] = []

    @precondition(lambda self: self.owner)
    @rule(worker=_WORKER, pick=_PICK)
    def begin(self, worker: int, pick: tuple[int, int]) -> None:
        """A device begins and never ends."""
        ranges, wanted = self._task([pick], worker)
        if ranges:
            self.workers[worker].begin(self.epoch, ranges)
            self.allowed.update((slot, {None}) for slot in wanted)

    @precondition(lambda self: self.owner)
    @rule(worker=_WORKER, picks=_PICKS, share=st.floats(0, 0.99), sums=st.booleans())
    def die_writing(self, worker: int, picks: list[tuple[int, int]], share: float, sums: bool) -> None:
        """A process of its own attaches, writes, and is killed within its payload or its checksums."""
        ranges, wanted = self._task(picks, worker)
        if not ranges or self.unsettled[worker]:
            return
        parity, checks = arrays(self.geometry, wanted.values())
        if sums:
            checks = cut_off(checks, int(share * checks.nbytes))
        else:
            parity = cut_off(parity, int(share * parity.nbytes))

        def write() -> None:
            view = self.attach(self.store.fds, self.geometry)
            view.write(self.epoch, ranges, parity, checks)
            view.settle(self.epoch)

        assert dies(write), "a writer came through a buffer that can't be read to its end"
        for slot in wanted:
            self.allowed[slot] = {None, *self.allowed[slot]}

    # ---- the group

    @rule(more=st.integers(0, 2))
    def fence(self, more: int) -> None:
        self.epoch += more
        self.store.advance(self.epoch)

    @rule(less=st.integers(1, 2))
    def fence_backwards(self, less: int) -> None:
        self._refused(lambda: self.store.advance(self.epoch - less), self.epoch - less)

    @precondition(lambda self: self.owner)
    @rule(worker=_WORKER, off=st.sampled_from([-2, -1, 1]), pick=_PICK)
    def write_of_another_epoch(self, worker: int, off: int, pick: tuple[int, int]) -> None:
        ranges, wanted = self._task([pick], worker)
        if ranges:
            parity, sums = arrays(self.geometry, wanted.values())
            view, epoch = self.workers[worker], self.epoch + off
            self._refused(lambda: view.write(epoch, ranges, parity, sums), epoch)
            self._refused(lambda: view.begin(epoch, ranges), epoch)
            self._refused(lambda: view.commit(epoch, ranges, sums), epoch)

    @rule(worker=_WORKER)
    def settle_what_was_fenced(self, worker: int) -> None:
        """A worker ends its flush without knowing of the fence."""
        flushes = [flush for flush in self.unsettled[worker] if flush.epoch < self.epoch]
        if not flushes:
            return
        with suppress(
            StaleEpochError
        ):  # raised by stores that commit with `settle`; the others have nothing left to do
            self.workers[worker].settle(flushes[-1].epoch)
        self.unsettled[worker] = []

    @rule(worker=_WORKER)
    def attach_again(self, worker: int) -> None:
        """A worker goes, with what it had not settled, and another takes its place."""
        self.workers[worker].close()
        self.workers[worker] = self.attach(self.store.fds, self.geometry)
        self.unsettled[worker] = []

    @rule()
    def inherit(self) -> None:
        """The store's maker goes; the memory stays."""
        heir = self.attach(self.store.fds, self.geometry)
        self.store.close()
        self.store = heir

    @precondition(lambda self: not self.free)
    @rule(block=st.integers(0, 4))
    def write_beyond_a_full_store(self, block: int) -> None:
        beyond = SlotRange(block, 1, self.geometry.num_parity_blocks, 0, 1)
        with pytest.raises(ValueError, match=str(self.geometry.num_parity_blocks)):
            self.store.write(self.epoch, [beyond], *arrays(self.geometry, [self._draw(block, 1)]))

    # ---- what is seen

    @invariant()
    def everything_that_is_read_is_allowed(self) -> None:
        if not hasattr(self, "store"):
            return
        self.drawn += 1
        views = [self.store, *self.workers]
        view = views[self.drawn % len(views)]
        assert view.epoch == self.epoch, f"the group is at epoch {self.epoch}, the store says {view.epoch}"
        seen: dict[tuple[int, int], Content | None] = dict.fromkeys(self.allowed)
        for place, block, generation in sorted(self.owners):
            for slot, content in enumerate(read(view, SlotRange(block, generation, place, 0, self.size))):
                if content is not None:
                    twice = seen[place, slot]
                    assert twice is None, f"slot {slot} of place {place} is committed for two: {twice} and {content}"
                    seen[place, slot] = content
        waiting = self._waiting()
        for at, found in seen.items():
            assert found in self.allowed[at], f"slot {at} holds {found}, allowed is {self.allowed[at]}"
            if at not in waiting:
                self.allowed[at] = {found}  # nobody is writing there: what was seen once stays

    # ---- helpers

    def _hand_out(self, place: int, block: int) -> None:
        self.uses[block] = generation = self.uses.get(block, 0) + 1
        self.owner[place] = block, generation
        self.owners.add((place, block, generation))

    def _waiting(self) -> set[tuple[int, int]]:
        """Slots that were written in the present epoch and not settled: their writers may still commit them."""
        return {s for flushes in self.unsettled for f in flushes if f.epoch == self.epoch for s in f.wanted}

    def _task(
        self, picks: list[tuple[int, int]], worker: int
    ) -> tuple[list[SlotRange], dict[tuple[int, int], Content]]:
        """Ranges over reserved places and new content for them; none that overlap, or that wait for their commit."""
        ranges: list[SlotRange] = []
        wanted: dict[tuple[int, int], Content] = {}
        waiting = self._waiting()
        for first, second in picks:
            place = sorted(self.owner)[first % len(self.owner)]
            block, generation = self.owner[place]
            start = second % self.size
            stop = start + 1 + first % (self.size - start)
            slots = [(place, slot) for slot in range(start, stop)]
            if not any(slot in waiting or slot in wanted for slot in slots):
                ranges.append(SlotRange(block, generation, place, start, stop))
                wanted.update((slot, self._draw(block, generation)) for slot in slots)
        return ranges, wanted

    def _draw(self, block: int, generation: int) -> Content:
        """Content that was never seen before."""
        self.drawn += 1
        return draw(self.geometry, self.drawn, block, generation)

    def _refused(self, call: Callable[[], object], epoch: int) -> None:
        with pytest.raises(StaleEpochError) as error:
            call()
        told = error.value.found, error.value.expected
        assert told == (self.epoch, epoch), f"the error tells of epochs {told}, not of {(self.epoch, epoch)}"


def check_model(model: type[StoreModel], *, histories: int = 300, steps: int = 50, shrink: bool = True) -> None:
    """Run `histories` histories of at most `steps` steps, drawn from a fixed seed; raises what a bad one raises.

    hypothesis prints the history, cut down to what makes it fail; without `shrink` as it was drawn, at once.
    """
    phases = tuple(phase for phase in (Phase.generate, Phase.shrink) if shrink or phase is not Phase.shrink)
    run_state_machine_as_test(
        model,
        settings=settings(
            max_examples=histories, stateful_step_count=steps, derandomize=True, deadline=None, database=None,
            phases=phases,
        ),
    )  # fmt: skip
