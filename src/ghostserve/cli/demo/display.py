"""What a display of the demo does, and the plain one: a line for everything that happens."""

import time
from collections.abc import Callable
from types import TracebackType
from typing import Protocol, Self

from rich.console import Console, RenderableType

from ghostserve.cli.demo.story import Story

__all__ = ["Display", "PlainDisplay"]

_COUNTS_SECONDS = 5.0
_PROGRESS_STEPS = 5


class Display(Protocol):
    """Follows the demo; a context manager."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def stage(self, text: str) -> None:
        """A new part of the demo begins."""

    def say(self, line: str) -> None:
        """Something happened; called from any thread."""

    def tick(self, story: Story) -> None:
        """Called several times a second while the streams run."""

    def progress(self, done: int, total: int) -> None:
        """How far the present part is."""


class PlainDisplay:
    """For logs and pipes."""

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        self._console = console
        self._clock = clock
        self._started = clock()
        self._counts_due = 0.0
        self._shown = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None

    def stage(self, text: str) -> None:
        self._shown = 0
        self.say(f"== {text}")

    def say(self, line: str) -> None:
        self._console.print(self._stamped(line), markup=False, highlight=False, soft_wrap=True)

    def tick(self, story: Story) -> None:
        if self._clock() >= self._counts_due:
            self._counts_due = self._clock() + _COUNTS_SECONDS
            self.say(", ".join(f"{stream.plan.name} {len(stream.token_ids)}" for stream in story.streams))

    def progress(self, done: int, total: int) -> None:
        part = done * _PROGRESS_STEPS // max(1, total)
        if part > self._shown:
            self._shown = part
            self.say(f"{done} of {total} steps")

    def _stamped(self, line: str) -> RenderableType:
        return f"[{self._clock() - self._started:6.1f} s] {line}"
