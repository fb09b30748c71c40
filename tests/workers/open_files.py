"""A process that runs out of open files."""

import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["room_for"]


@contextmanager
def room_for(more: int) -> Iterator[None]:
    """This process may open so many more files, and no others."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    first = os.open("/dev/null", os.O_RDONLY)  # the lowest number that is free
    held = []
    try:
        while (number := os.open("/dev/null", os.O_RDONLY)) < first + 200:  # no gaps below the limit
            held.append(number)
        os.close(number)
        for _ in range(more):
            os.close(held.pop())
        resource.setrlimit(resource.RLIMIT_NOFILE, (number, before[1]))
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
        for number in [first, *held]:
            os.close(number)
