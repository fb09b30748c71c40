"""SIGTERM for commands that have started processes: it unwinds, as Ctrl-C does."""

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

__all__ = ["unwinding_on_sigterm"]

_AGAIN_SECONDS = 0.05


class _Terminated(SystemExit):
    """Ours, and nobody else's `SystemExit`."""


@contextmanager
def unwinding_on_sigterm(code: int) -> Iterator[None]:
    """A SIGTERM raises `SystemExit(code)` in the main thread, where this must be used; then the old handlers are back.

    A signal that comes while a finalizer or a weak reference's callback runs, as they do at the end of every import,
    would be lost with what it raises there: Python prints such an exception and goes on. The signal is repeated a
    moment later, for whoever handles it by then. SIGALRM and its timer (ITIMER_REAL) serve that alone meanwhile.
    """

    def leave(number: int, frame: FrameType | None) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)  # no repetition into the cleanup that begins now
        raise _Terminated(code)

    def repeat(number: int, frame: FrameType | None) -> None:
        signal.raise_signal(signal.SIGTERM)

    def unraisable(lost: "sys.UnraisableHookArgs") -> None:
        if issubclass(lost.exc_type, _Terminated):
            signal.setitimer(signal.ITIMER_REAL, _AGAIN_SECONDS)
        else:
            others(lost)

    others = sys.unraisablehook
    handlers = {signal.SIGTERM: leave, signal.SIGALRM: repeat}
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    sys.unraisablehook = unraisable
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        sys.unraisablehook = others
        for number, old in before.items():
            signal.signal(number, old)
