"""`ghostserve serve`: one engine behind the OpenAI-compatible server, from the first check to the last process."""

import asyncio
import logging
import os
import signal
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from ghostserve.cli.logs import quiet_progress_bars, set_up_logging
from ghostserve.engine.config import EngineConfig
from ghostserve.errors import ConfigError
from ghostserve.server.settings import ServerSettings
from ghostserve.signals import unwinding_on_sigterm

if TYPE_CHECKING:
    from ghostserve.engine.engine import Engine

__all__ = ["choose_keys", "run_server"]

KEYS_VARIABLE = "GHOSTSERVE_API_KEY"

log = logging.getLogger("ghostserve.serve")

_WATCH_SECONDS = 1.0


def run_server(
    config: EngineConfig,
    settings: ServerSettings,
    *,
    host: str,
    port: int,
    api_keys: Sequence[str],
    served_model_name: str | None,
    log_level: str,
) -> int:
    """Serve until SIGTERM or Ctrl-C; returns 0 after a clean stop. Raises `GhostServeError` if the engine dies.

    Keys, open files, port and checkpoint are seen to in this order, and first, so that no worker is started in vain.
    """
    set_up_logging(log_level)
    quiet_progress_bars()
    # Before the server listens; later it takes the signal itself.
    with unwinding_on_sigterm(0):
        from ghostserve.server import ApiKeys, bind, ensure_descriptors

        ApiKeys(api_keys)  # refused here, before a worker is started
        ensure_descriptors(settings, workers=config.tensor_parallel_size + config.standbys)
        with bind(host, port) as listener:
            engine = _start(config, served_model_name)
            try:
                asyncio.run(_serve(engine, listener, settings, api_keys))
            finally:
                _stop(engine)
    return 0


def choose_keys(given: Sequence[str] | None) -> Sequence[str]:
    """The keys given as flags, else those of the environment. Raises `ConfigError` where that is set and has none."""
    if given is not None:
        return given
    keys = os.environ.get(KEYS_VARIABLE, "").split()
    if not keys and KEYS_VARIABLE in os.environ:
        # A mistake in some script: a server that asks for no key would be the worst answer to it.
        raise ConfigError(f"{KEYS_VARIABLE} is set and empty: set it to a key, or unset it")
    return keys


def _start(config: EngineConfig, served_model_name: str | None) -> "Engine":
    with _progress() as say:
        say("importing torch and transformers")
        from ghostserve.engine.coordinator import Options
        from ghostserve.engine.engine import Engine

        say(f"checking {config.model}")

        def observe(event: str, details: dict[str, object]) -> None:
            if event == "phase" and details["phase"] == "rejoining":
                say("the weights are loaded, the ranks join")

        name = served_model_name or Path(config.model).resolve().name.removesuffix(".gguf")
        engine = Engine(config, model_name=name, options=Options(observer=observe))
        say(f"starting {config.tensor_parallel_size} workers, each imports and loads its weights")
        try:
            engine.start()
        except BaseException:
            engine.stop()
            raise
        return engine


async def _serve(engine: "Engine", listener: socket.socket, settings: ServerSettings, api_keys: Sequence[str]) -> None:
    from ghostserve.server import create_app, serve

    stop = asyncio.Event()
    watcher = asyncio.create_task(_watch(engine, stop))

    def ready(host: str, port: int) -> None:
        config = engine.coordinator.config
        log.info(
            "serving %s on http://%s:%d with %d ranks, protected by %s",
            engine.model_name, host, port, config.tensor_parallel_size, _protection(config),
        )  # fmt: skip

    try:
        app = create_app(engine, settings, api_keys=api_keys)
        await serve(app, settings=settings, listener=listener, on_ready=ready, stop=stop)
    finally:
        watcher.cancel()
    await engine.check_health()


async def _watch(engine: "Engine", stop: asyncio.Event) -> None:
    """End the server when the engine is dead for good: whoever supervises this process has to know."""
    while engine.coordinator.failure is None:
        await asyncio.sleep(_WATCH_SECONDS)
    stop.set()


def _protection(config: EngineConfig) -> str:
    name = config.strategy.name
    return f"{config.parity} parity" if name == "parity" else "nothing" if name == "none" else name


def _stop(engine: "Engine") -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # asked again: it is ending
    log.info("stopping %d workers", engine.spec.tensor_parallel_size)
    engine.stop()
    log.info("stopped")


@contextmanager
def _progress() -> Iterator[Callable[[str], None]]:
    """Shows what the start is doing: a spinner on a terminal, log lines elsewhere."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield log.info
        return
    with console.status("starting") as status:
        yield status.update
