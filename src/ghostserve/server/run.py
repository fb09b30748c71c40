"""Runs the application on uvicorn: binds first, reports the address, drains on a signal."""

import asyncio
import errno
import logging
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any, cast

import uvicorn
from starlette.types import ASGIApp

from ghostserve.errors import ConfigError
from ghostserve.server.connection import GuardedProtocol
from ghostserve.server.descriptors import BACKLOG
from ghostserve.server.drain import Drain
from ghostserve.server.errors import ApiError, ErrorHandlers
from ghostserve.server.settings import ServerSettings

__all__ = ["bind", "serve"]

logger = logging.getLogger(__name__)

_CLOSE_SECONDS = 5
"""For what is still unsent, when all requests are over."""


class _Server(uvicorn.Server):
    """uvicorn without its signal handling, which would end the process before the engine is stopped."""

    def __init__(self, config: uvicorn.Config, door: Drain, drain_seconds: float) -> None:
        super().__init__(config)
        self._door = door
        self._drain_seconds = drain_seconds
        self._draining: asyncio.Task[None] | None = None

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    def stop(self) -> None:
        """Drain and stop; asked again, cut what still runs."""
        if self._draining is None:
            self._draining = asyncio.create_task(self._drain())
        else:
            self._cut()

    async def _drain(self) -> None:
        """The socket stays open meanwhile: who comes is told, and not left with a refused connection."""
        await self._door.close(self._drain_seconds)
        self._cut()

    def _cut(self) -> None:
        for task in self.server_state.tasks:
            task.cancel()
        self.should_exit = True

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        """Serve, and return only when the requests that were cut have been closed in the engine too."""
        await super().serve(sockets)
        if self.server_state.tasks:
            await asyncio.wait(self.server_state.tasks)
        if self._draining is not None:
            self._draining.cancel()


def bind(host: str = "127.0.0.1", port: int = 8000) -> socket.socket:
    """A bound socket, before anything slow starts. Port 0 takes a free port: `getsockname()` tells which."""
    if not 0 <= port <= 65535:
        raise ConfigError(f"port is {port}: it must be from 0 to 65535")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except socket.gaierror as error:
        raise ConfigError(f"host is {host!r}: it is no address of this machine ({error.strerror})") from error
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        listener.close()
        raise _refusal(error, host, port) from error
    return listener


async def serve(
    app: ASGIApp,
    host: str = "127.0.0.1",
    port: int = 8000,
    *,
    settings: ServerSettings | None = None,
    listener: socket.socket | None = None,
    on_ready: Callable[[str, int], None] | None = None,
    stop: asyncio.Event | None = None,
    drain_seconds: float = 30.0,
) -> None:
    """Serve until SIGTERM, SIGINT or `stop`; then let running requests end, for `drain_seconds` at most.

    New ones get 503 meanwhile.

    `settings` limits connections and how long they may be idle.
    `listener` is a socket from `bind` to use instead of `host` and `port`. `on_ready` is told the address
    when requests are answered. Signals are handled only in the main thread; a second one ends the drain.
    """
    settings = settings or ServerSettings()
    bound = listener or bind(host, port)
    with bound:
        address = bound.getsockname()
        try:
            bound.listen(BACKLOG)
        except OSError as error:  # another process was bound to the port too and has begun to listen
            raise _refusal(error, address[0], address[1]) from error
        door = Drain(app, _leaving(settings))
        server = _Server(
            uvicorn.Config(
                door,
                log_config=None,
                access_log=False,
                ws="none",
                http=cast("Any", partial(GuardedProtocol, settings=settings, busy=_busy(settings))),
                h11_max_incomplete_event_size=settings.h11_max_incomplete_event_size,
                timeout_keep_alive=settings.timeout_keep_alive,
                backlog=BACKLOG,
                timeout_graceful_shutdown=_CLOSE_SECONDS,
            ),
            door,
            drain_seconds,
        )
        with _signals(server):
            await _run(server, bound, on_ready, stop)


async def _run(
    server: _Server,
    bound: socket.socket,
    on_ready: Callable[[str, int], None] | None,
    stop: asyncio.Event | None,
) -> None:
    running = asyncio.create_task(server.serve(sockets=[bound]))
    watcher = asyncio.create_task(_watch(server, bound, on_ready, stop))
    try:
        await asyncio.wait((running, watcher), return_when=asyncio.FIRST_COMPLETED)
        if watcher.done():
            watcher.result()  # an error of `on_ready` stops the server
        await running
    finally:
        server.should_exit = True
        watcher.cancel()
        await running
        with suppress(asyncio.CancelledError):
            await watcher


async def _watch(
    server: _Server,
    bound: socket.socket,
    on_ready: Callable[[str, int], None] | None,
    stop: asyncio.Event | None,
) -> None:
    while not server.started:
        await asyncio.sleep(0.01)
    host, port = bound.getsockname()[:2]
    logger.info("listening on http://%s:%d", host, port)
    if on_ready is not None:
        on_ready(host, port)
    if stop is not None:
        await stop.wait()
        server.stop()


@contextmanager
def _signals(server: _Server) -> Iterator[None]:
    """SIGTERM and SIGINT stop the server; the handlers that were there before come back afterwards."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    loop = asyncio.get_running_loop()
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    for number in before:
        loop.add_signal_handler(number, server.stop)
    try:
        yield
    finally:
        for number, handler in before.items():
            loop.remove_signal_handler(number)
            signal.signal(number, handler)


def _busy(settings: ServerSettings) -> ASGIApp:
    """Answers on connections over the limit."""
    most = settings.limit_concurrency
    error = ApiError(f"{most} connections are open: no more are served at once", status=503, code="overloaded")
    return ErrorHandlers(settings).response(error, {"Connection": "close"})


def _leaving(settings: ServerSettings) -> ASGIApp:
    """Answers requests that come while the server drains."""
    error = ApiError("the server is shutting down: no new requests are taken", status=503, code="shutting_down")
    return ErrorHandlers(settings).response(error, {"Connection": "close"})


def _refusal(error: OSError, host: str, port: int) -> ConfigError:
    if error.errno == errno.EADDRINUSE:
        return ConfigError(f"port {port} on {host} is in use; choose another with --port")
    if error.errno == errno.EACCES:
        return ConfigError(f"port {port} on {host} needs privileges; choose one above 1023 with --port")
    return ConfigError(f"can't listen on {host} port {port}: {error.strerror}")
