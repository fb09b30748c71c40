"""The stores against the naive model, and broken stores that the model must catch."""

from tempfile import gettempdir

import broken_stores as broken
import pytest
from makers import InMemory, OnDisk
from twins import FAILURES

from ghostserve.parity import ParityStore, StoreGeometry
from ghostserve.parity.file_store import FileStore
from ghostserve.testing.stateful import StoreModel, check_model


class InMemoryModel(InMemory, StoreModel):
    pass


class OnDiskModel(OnDisk, StoreModel):
    pass


@pytest.mark.parametrize("model", [InMemoryModel, OnDiskModel])
def test_every_history_is_one_that_the_model_allows(model: type[StoreModel]) -> None:
    check_model(model)


BROKEN = [
    broken.NeverCommits,
    broken.IgnoresGeneration,
    broken.IgnoresBlock,
    broken.KeepsGenerations,
    broken.WholeBlocks,
    broken.GoesBack,
    broken.AcceptsOldEpochs,
    broken.AcceptsLaterEpochs,
    broken.SettlesUnderAnyEpoch,
    broken.KeepsBuffers,
    broken.Forgets,
    broken.ClearsOnClose,
    broken.ClearsNothing,
    broken.CommitsFirst,
    broken.Wraps,
]


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_store_is_caught(kind: type[ParityStore]) -> None:
    on_disk = issubclass(kind, FileStore)

    class Model(OnDisk if on_disk else InMemory, StoreModel):
        def create(self, geometry: StoreGeometry, epoch: int = 1) -> ParityStore:
            return kind.create_in(gettempdir(), geometry, epoch) if on_disk else kind.create(geometry, epoch)

        def attach(self, fds: tuple[int, ...], geometry: StoreGeometry) -> ParityStore:
            return kind.attach_file(*fds, geometry) if on_disk else kind.attach(*fds, geometry)

    with pytest.raises((*FAILURES, ExceptionGroup)):
        check_model(Model, histories=2000, shrink=False)  # it ends with the first that fails
