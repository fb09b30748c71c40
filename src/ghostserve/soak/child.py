"""The embedded engine's server of a soak, as a process: `python -m ghostserve.soak.child SETTINGS`, a JSON object.

The same engine and server as `ghostserve serve`, with its schedule recorded.
"""

import asyncio
import logging
import sys
from pathlib import Path

import msgspec

from ghostserve.engine.config import EngineConfig
from ghostserve.engine.coordinator import Options
from ghostserve.engine.engine import Engine
from ghostserve.engine.record import Recorder
from ghostserve.server import bind, create_app, serve
from ghostserve.signals import unwinding_on_sigterm

__all__ = ["ChildSettings", "main"]


class ChildSettings(msgspec.Struct, frozen=True, kw_only=True):
    """`record`: the file for the schedule; `address`: the file that says where the server listens."""

    engine: EngineConfig
    model_name: str
    record: str
    address: str
    skip_rebuild: bool


def main(text: str) -> None:
    """Serve until SIGTERM."""
    settings = msgspec.json.decode(text, type=ChildSettings)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)-7s %(message)s", datefmt="%H:%M:%S")
    recorder = Recorder(Path(settings.record))
    options = Options(observer=recorder.observe, skip_rebuild=settings.skip_rebuild)
    try:
        with (
            unwinding_on_sigterm(0),  # while it starts; then the server takes the signal over
            bind(port=0) as listener,
            Engine(settings.engine, model_name=settings.model_name, options=options) as engine,
        ):

            def ready(host: str, port: int) -> None:
                # Written elsewhere first: nobody must read half an address.
                scratch = Path(f"{settings.address}.new")
                scratch.write_text(f"http://{host}:{port}")
                scratch.rename(settings.address)

            asyncio.run(serve(create_app(engine), listener=listener, on_ready=ready, drain_seconds=5.0))
    finally:
        recorder.close()


if __name__ == "__main__":
    main(sys.argv[1])
