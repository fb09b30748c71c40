"""The demo from the model to the exit code."""

import asyncio
import io
import logging
import re
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console, RenderableType

from ghostserve.cli.bundled import bundled_model
from ghostserve.cli.demo.display import Display, PlainDisplay
from ghostserve.cli.demo.live import LiveDisplay
from ghostserve.cli.demo.picture import Picture
from ghostserve.cli.demo.prompts import STREAMS
from ghostserve.cli.demo.settings import DemoSettings
from ghostserve.cli.demo.story import Story
from ghostserve.cli.logs import quiet_progress_bars
from ghostserve.errors import ConfigError

if TYPE_CHECKING:
    from ghostserve.cli.demo.verdict import Verdict

__all__ = ["run_demo"]

_SVG_COLUMNS = 118


def run_demo(settings: DemoSettings, *, plain: bool = False, svg: Path | None = None) -> int:
    """Perform, compare, print; 0 only if both recoveries happened and everything is the same, else 1."""
    if svg is not None and not svg.absolute().parent.is_dir():
        raise ConfigError(f"svg {str(svg)!r} can't be written: its folder does not exist")
    model = settings.model or str(bundled_model())
    quiet_progress_bars()
    logging.getLogger("ghostserve").addHandler(logging.NullHandler())  # the display tells it, not the log
    console = Console()
    story = Story(STREAMS)
    title = f"GhostServe · {Path(model).stem} · {settings.tensor_parallel_size} ranks · parity {settings.parity}"
    picture = Picture(story, title, settings.max_tokens)
    live = console.is_terminal and not plain
    display: Display = LiveDisplay(console, picture) if live else PlainDisplay(console)
    story.say = display.say
    with display:
        verdict = _perform(settings, model, story, display)
    from ghostserve.cli.demo.summary import summary

    last = summary(story, verdict, settings)
    console.print(last)
    if svg is not None:
        _save(svg, picture, last)
    return 0 if verdict.passed else 1


def _perform(settings: DemoSettings, model: str, story: Story, display: Display) -> "Verdict":
    display.stage("importing torch and transformers")
    from ghostserve.cli.demo.stage import perform
    from ghostserve.cli.demo.verdict import judge
    from ghostserve.engine.coordinator import Options
    from ghostserve.engine.engine import Engine
    from ghostserve.engine.files import resolve_checkpoint

    display.stage(f"preparing {Path(model).name} (a GGUF file is converted once, and cached)")
    folder = resolve_checkpoint(model)
    options = Options(observer=story.observe, record=True, skip_rebuild=settings.sabotage == "skip-rebuild")
    engine = Engine(settings.engine_config(str(folder)), model_name=Path(model).stem, options=options)
    display.stage(f"starting {settings.tensor_parallel_size} workers")
    with engine:
        display.stage("streaming, with two kills on the way")
        asyncio.run(perform(engine, story, settings, display))
        story.status = engine.status()
        display.stage("stopping the engine")
    display.stage("the same schedule again, undisturbed, on fresh workers")
    return judge(engine, story, display.progress)


def _save(file: Path, *parts: RenderableType) -> None:
    """The last picture, drawn once more at a fixed width."""
    console = Console(
        record=True, width=_SVG_COLUMNS, file=io.StringIO(), force_terminal=True, color_system="truecolor"
    )
    for part in parts:
        console.print(part)
    # The picture must not send its viewers to a font server: what they have as monospace will do.
    plain = re.sub(r"@font-face {.*?}\n", "", console.export_svg(title="ghostserve demo"), flags=re.DOTALL)
    file.write_text(plain)
