"""The collector rests during long imports, and only then."""

import gc
from collections.abc import Iterator

import pytest

from ghostserve.imports import fast_imports


@pytest.fixture(autouse=True)
def collecting() -> Iterator[None]:
    assert gc.isenabled()
    yield
    gc.enable()


def test_the_collector_rests_and_goes_on() -> None:
    with fast_imports():
        assert not gc.isenabled()
    assert gc.isenabled()


def test_after_an_import_that_fails_it_goes_on_too() -> None:
    with pytest.raises(ImportError), fast_imports():
        raise ImportError
    assert gc.isenabled()


def test_where_somebody_has_switched_it_off_it_stays_off() -> None:
    gc.disable()
    with fast_imports(), fast_imports():
        pass
    assert not gc.isenabled()
