"""Running a suite's tests by hand, and seeing one fail."""

import inspect
from collections.abc import Iterable
from typing import Any

import pytest

FAILURES = (AssertionError, pytest.fail.Exception)


def promises(suite: type) -> set[str]:
    """The names of a suite's tests."""
    return {name for name, _ in inspect.getmembers(suite, inspect.isfunction) if name.startswith("test_")}


def must_fail(suite: Any, promise: str) -> None:
    """The suite's test of `promise` fails, by an assertion or for want of an error that should be raised."""
    with pytest.raises(FAILURES):
        getattr(suite, promise)()


def without_twin(suite: type, tried: Iterable[str]) -> set[str]:
    """Promises that nothing broken was made for."""
    return promises(suite) ^ set(tried)
