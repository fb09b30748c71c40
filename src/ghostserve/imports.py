"""Long imports, a quarter to a third shorter."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["fast_imports"]


@contextmanager
def fast_imports() -> Iterator[None]:
    """For imports of much, such as torch or vLLM: Python's garbage collector rests, and is then as it was before.

    It would look through all that they make, over and over, and find next to nothing, for what is imported stays.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
