"""The demo on a terminal: one picture that changes in place, with a line under it that says what is going on."""

from types import TracebackType
from typing import Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from ghostserve.cli.demo.picture import Picture
from ghostserve.cli.demo.story import Story

__all__ = ["LiveDisplay"]


class LiveDisplay:
    """`Display` for a terminal."""

    def __init__(self, console: Console, picture: Picture) -> None:
        self._progress = Progress(
            SpinnerColumn(), TextColumn("{task.description}"), BarColumn(24), TimeElapsedColumn(), console=console
        )
        self._task = self._progress.add_task("", total=None)
        self._picture = picture
        self._live = Live(get_renderable=self._render, console=console, refresh_per_second=8)

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.update(self._task, visible=False)
        self._live.stop()

    def stage(self, text: str) -> None:
        self._progress.reset(self._task, total=None, description=text)

    def say(self, line: str) -> None:
        """The picture shows it already."""

    def tick(self, story: Story) -> None:
        """The picture refreshes itself."""

    def progress(self, done: int, total: int) -> None:
        self._progress.update(self._task, completed=done, total=total)

    def _render(self) -> RenderableType:
        return Group(self._picture, self._progress)
