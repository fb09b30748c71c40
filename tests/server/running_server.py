"""A real server in a thread of its own, for the server's tests."""

import asyncio
import socket
import threading
from collections.abc import Sequence

from server_fakes import FakeEngine

from ghostserve.server import ServerSettings, bind, create_app, serve

SETTINGS = ServerSettings(max_body_bytes=20_000, max_choices=8, keep_alive_seconds=0.1)


class RunningServer:
    """A server in a thread of its own."""

    def __init__(
        self, engine: FakeEngine, settings: ServerSettings, api_keys: Sequence[str] = (), send_buffer: int = 0
    ) -> None:
        self.url = ""
        self._ready = threading.Event()
        self._settings = settings
        self._send_buffer = send_buffer
        self._app = create_app(engine, settings, api_keys=api_keys)
        self._thread = threading.Thread(target=lambda: asyncio.run(self._main()))

    async def _main(self) -> None:
        self._stop = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        listener = bind(port=0)
        if self._send_buffer:  # the kernel holds as little as it can: what a client does not read shows soon
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, self._send_buffer)
        await serve(
            self._app,
            listener=listener,
            on_ready=self._on_ready,
            stop=self._stop,
            drain_seconds=1,
            settings=self._settings,
        )

    def _on_ready(self, host: str, port: int) -> None:
        self.url = f"http://{host}:{port}"
        self._ready.set()

    def __enter__(self) -> "RunningServer":
        self._thread.start()
        assert self._ready.wait(20)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(20)
        assert not self._thread.is_alive()
