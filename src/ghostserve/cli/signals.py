"""SIGTERM for commands that have started processes: it unwinds, as Ctrl-C does."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

__all__ = ["unwinding_on_sigterm"]


@contextmanager
def unwinding_on_sigterm(code: int) -> Iterator[None]:
    """A SIGTERM raises `SystemExit(code)` in the main thread, where this must be used; then the old handler is back."""

    def leave(number: int, frame: FrameType | None) -> None:
        raise SystemExit(code)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
