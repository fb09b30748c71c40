"""A whole soak: model, server, campaign, stop, rerun, report."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Protocol

from ghostserve.errors import GhostServeError
from ghostserve.soak.campaign import Campaign
from ghostserve.soak.report import Found, Report, judge
from ghostserve.soak.server import Comparison, SoakServer
from ghostserve.soak.settings import SoakSettings

__all__ = ["Display", "run_soak"]


class Display(Protocol):
    """Follows a soak."""

    def stage(self, text: str) -> None:
        """A new part begins."""

    def struck(self, found: Found, wanted: int) -> None:
        """After each strike and its streams."""

    def progress(self, done: int, total: int) -> None:
        """How far the present part is."""


def run_soak(settings: SoakSettings, display: Display) -> Report:
    """Start a server, strike it, stop it, compare. Raises `GhostServeError` if it never serves."""
    with _model(settings, display.stage) as model, make_server(settings, model) as server:
        display.stage(f"starting {settings.tensor_parallel_size} ranks and {settings.standbys} standbys")
        server.start()
        display.stage("striking")
        found = Campaign(settings, server, lambda found: display.struck(found, settings.kills)).run()
        display.stage("stopping the server")
        code = server.stop()
        if code != 0 and found.broken is None:
            found.broken = f"the server ended with {code} when it was asked to stop: {server.tail()}"
        found.leaks += [f"left behind: {left}" for left in server.leftovers()]
        display.stage("the same schedule again, undisturbed")
        return judge(settings, found, _compare(server, found, display.progress))


def make_server(settings: SoakSettings, model: Path) -> SoakServer:
    """The server of the engine that the settings name."""
    if settings.engine == "vllm":
        from ghostserve.soak.vllm import VllmServer

        return VllmServer(settings, model)
    from ghostserve.soak.embedded import EmbeddedServer

    return EmbeddedServer(settings, model)


def _compare(server: SoakServer, found: Found, on_progress: Callable[[int, int], None]) -> Comparison | None:
    """None, and the reason among what is found, where a broken run left no schedule to run again."""
    try:
        return server.compare(on_progress)
    except (GhostServeError, OSError) as error:
        found.broken = "; ".join([*([found.broken] if found.broken else []), f"no rerun: {error}"])
        return None


def _model(settings: SoakSettings, stage: Callable[[str], None]) -> AbstractContextManager[Path]:
    if settings.model is not None:
        return nullcontext(Path(settings.model))
    stage("making a small model with random weights")
    from ghostserve.soak.model import small_model

    return small_model()
