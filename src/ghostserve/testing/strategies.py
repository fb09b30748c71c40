"""What every protection strategy promises, as tests to inherit."""

import os
import re
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest

from ghostserve.checkpoint.ledger import EncoderPolicy
from ghostserve.errors import (
    DiskBudgetError,
    MemoryBudgetError,
    StaleEpochError,
    StoreMismatchError,
    UnsupportedCodeError,
)
from ghostserve.parity import StoreGeometry
from ghostserve.protect import Kept, Strategy
from ghostserve.testing.scene import LAYOUT, UNWRITTEN, WRITTEN, Scene

__all__ = ["StrategyConformance"]


class StrategyConformance(ABC):
    """Subclass it as `class TestMyStrategy(StrategyConformance)` and give `make_strategy`.

    `shards`: numbers of data shards that are tried. `refused`: those that it does not serve.
    """

    shards: ClassVar[Sequence[int]] = (1, 2, 4)
    refused: ClassVar[Sequence[int]] = ()

    @abstractmethod
    def make_strategy(self) -> Strategy:
        """A new one, as each process makes its own from the settings."""

    def test_it_has_a_name_and_says_who_writes(self) -> None:
        strategy = self.make_strategy()
        assert isinstance(strategy.name, str), f"the name is {strategy.name!r}"
        assert strategy.name, "the name is empty"
        policies: tuple[EncoderPolicy, ...] = ("round_robin", "striped")
        for wanted in policies:
            chosen = strategy.encoder(wanted)
            assert chosen in policies, f"asked for {wanted}, the encoder is {chosen!r}"

    def test_the_code_is_over_the_shards_that_there_are(self) -> None:
        for shards in self.shards:
            first, second = (self.make_strategy().code(shards) for _ in range(2))
            assert (first is None) == (second is None), f"of {shards} shards one process keeps a code, another none"
            if first is not None and second is not None:
                assert first.n == shards, f"{first} is over {first.n} shards, there are {shards}"
                same = first.encode_plan == second.encode_plan
                assert same, f"two processes encode {shards} shards differently: {first}, {second}"

    def test_numbers_of_shards_that_are_not_served_are_refused_with_the_number(self) -> None:
        for shards in self.refused:
            with pytest.raises(UnsupportedCodeError, match=rf"(?<!\d){shards}(?!\d)"):
                self.make_strategy().code(shards)

    def test_as_many_as_it_covers_come_back_bit_for_bit(self) -> None:
        """Flushed by one process, rebuilt by another, from ranks whose memory is poisoned."""
        for shards in self.shards:
            with self._scene(shards) as scene:
                scene.flush(WRITTEN)
                for count in range(1, self.make_strategy().covers(shards) + 1):
                    for lost in combinations(range(shards), count):
                        report = scene.lose(lost, WRITTEN)
                        assert not report.failed, f"lost {lost} of {shards}: {report.failed} {report.reasons}"
                        assert scene.wrong(lost, WRITTEN) == [], f"lost {lost} of {shards}: other bytes came back"

    def test_no_more_come_back_than_it_says(self) -> None:
        for shards in self.shards:
            strategy = self.make_strategy()
            covered = strategy.covers(shards)
            if strategy.code(shards) is None:
                assert covered == 0, f"without a code it covers {covered} of {shards} shards"
                continue
            assert covered >= 1, f"it keeps {strategy.code(shards)}, and covers {covered}"
            with self._scene(shards) as scene:
                scene.flush(WRITTEN)
                for lost in combinations(range(shards), covered + 1):
                    report = scene.lose(lost, WRITTEN)
                    assert report.failed, f"lost {lost} of {shards}: rebuilt, although only {covered} are covered"
                    assert scene.untouched(lost, WRITTEN), f"lost {lost} of {shards}: bytes were made up"

    def test_what_was_never_flushed_is_not_made_up(self) -> None:
        for shards in self.shards:
            if not self.make_strategy().covers(shards):
                continue
            with self._scene(shards) as scene:
                scene.flush(WRITTEN)
                report = scene.lose((0,), (*WRITTEN, *UNWRITTEN))
                assert report.failed == UNWRITTEN, f"never flushed: {UNWRITTEN}, reported: {report.failed}"
                assert scene.wrong((0,), WRITTEN) == [], "what was flushed came back otherwise"
                assert scene.untouched((0,), UNWRITTEN), "bytes of slots that were never flushed were made up"

    def test_a_flush_after_a_fence_commits_nothing(self) -> None:
        for shards in self.shards:
            if self.make_strategy().code(shards) is None:
                continue
            with self._scene(shards) as scene:
                scene.store.advance(scene.epoch + 1)
                with pytest.raises(StaleEpochError):
                    scene.flush(WRITTEN)
                committed = scene.store.committed_slots(WRITTEN)
                assert not committed.any(), f"{int(committed.sum())} slots were committed by an older epoch"

    def test_two_stores_have_nothing_in_common(self) -> None:
        """A strategy holds no state."""
        for shards in self.shards:
            strategy = self.make_strategy()
            if strategy.code(shards) is None:
                continue
            with self._scene(shards, strategy) as one, self._scene(shards, strategy) as other:
                one.flush(WRITTEN)
                assert not other.store.committed_slots(WRITTEN).any(), "a flush to one store is seen in another"
                assert one.store.committed_slots(WRITTEN).all(), "the other store took the slots away"

    def test_it_takes_what_it_says(self) -> None:
        for shards in self.shards:
            strategy = self.make_strategy()
            if strategy.code(shards) is None:
                kept = strategy.kept(StoreGeometry(shards, 1, 1, 1, 1))
                assert kept == Kept(host=0, disk=0), f"without a code it takes {kept}"
                continue
            with self._scene(shards, strategy) as scene:
                kept = strategy.kept(scene.store.geometry)
                found = sum(os.fstat(fd).st_size for fd in scene.store.fds)
                assert found == kept.host + kept.disk, f"the store takes {found} bytes, it says {kept}"
                assert not any(scene.folder.iterdir()), f"names were left in {scene.folder}"

    def test_another_geometry_is_refused(self) -> None:
        for shards in self.shards:
            if self.make_strategy().code(shards) is None:
                continue
            with self._scene(shards) as scene:
                other = replace(scene.store.geometry, block_size=LAYOUT.block_size + 1)
                with pytest.raises(StoreMismatchError, match=r"\d"):
                    self.make_strategy().attach(scene.store.fds, other).close()

    def test_no_room_is_said_before_anything_starts(self) -> None:
        for shards in self.shards:
            strategy = self.make_strategy()
            code = strategy.code(shards)
            if code is None:
                continue
            huge = StoreGeometry(code.n, code.k, 1, 1, (1 << 60) // code.k)
            with tempfile.TemporaryDirectory() as folder:
                with pytest.raises((MemoryBudgetError, DiskBudgetError), match=r"TiB"):
                    strategy.create(huge, folder).close()
                missing = str(Path(folder) / "missing")
                small = StoreGeometry(code.n, code.k, 1, 1, 64)
                if strategy.kept(small).disk:
                    with pytest.raises(DiskBudgetError, match=re.escape(missing)):
                        strategy.create(small, missing).close()

    @contextmanager
    def _scene(self, shards: int, strategy: Strategy | None = None) -> Iterator[Scene]:
        """Ranks with random caches; a coordinator's store and a worker's view, each from a strategy of its own."""
        maker = strategy or self.make_strategy()
        with tempfile.TemporaryDirectory() as folder:
            scene = Scene(maker, self.make_strategy(), shards, Path(folder), np.random.default_rng(shards))
            try:
                yield scene
            finally:
                scene.close()
