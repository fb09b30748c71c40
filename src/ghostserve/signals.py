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
    would be lost with what it raises there: Python prints such an exception and goes on. It is raised again a moment
    later, by SIGALRM.
    """

    def leave(number: int, frame: FrameType | None) -> None:
        raise _Terminated(code)

    def unraisable(lost: "sys.UnraisableHookArgs") -> None:
        if issubclass(lost.exc_type, _Terminated):
            signal.setitimer(signal.ITIMER_REAL, _AGAIN_SECONDS)
        else:
            others(lost)

    others = sys.unraisablehook
    before = {number: signal.signal(number, leave) for number in (signal.SIGTERM, signal.SIGALRM)}
    sys.unraisablehook = unraisable
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        sys.unraisablehook = others
        for number, handler in before.items():
            signal.signal(number, handler)
