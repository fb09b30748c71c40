"""Server-sent events: a response that streams chunks and ends its source when the client goes away."""

import logging
from collections.abc import AsyncGenerator, Callable

import msgspec
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from ghostserve.errors import GhostServeError
from ghostserve.server.errors import error_body
from ghostserve.server.streams import unless_disconnected

__all__ = ["DONE", "KEEP_ALIVE", "EventStream", "event"]

logger = logging.getLogger(__name__)

DONE = b"data: [DONE]\n\n"
KEEP_ALIVE = b": keep-alive\n\n"  # a comment: clients ignore it, proxies see a live connection


def event(content: object) -> bytes:
    """One event with JSON data."""
    return b"data: " + msgspec.json.encode(content) + b"\n\n"


class EventStream(Response):
    """Sends `first` and then `chunks`. An error ends the stream with an error event, and without `[DONE]`.

    `on_end` is called once the source is closed.
    """

    def __init__(self, first: bytes, chunks: AsyncGenerator[bytes, None], on_end: Callable[[], None]) -> None:
        self.status_code = 200
        self.background = None
        self.body = b""
        self.init_headers(
            {
                "content-type": "text/event-stream; charset=utf-8",
                "cache-control": "no-cache",
                "x-accel-buffering": "no",  # nginx would collect the events otherwise
            }
        )
        del self.headers["content-length"]
        self._first = first
        self._chunks = chunks
        self._on_end = on_end

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Stream until the end, an error or a client that is gone; the source is closed in every case."""
        try:
            await unless_disconnected(receive, self._send_all(send))
        except ClientDisconnect:
            logger.debug("%s: the client went away from its stream", scope["path"])
        finally:
            try:
                await self._chunks.aclose()
            finally:
                self._on_end()

    async def _send_all(self, send: Send) -> None:
        async def put(chunk: bytes, more: bool = True) -> None:
            await send({"type": "http.response.body", "body": chunk, "more_body": more})

        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        try:
            await put(self._first)
            async for chunk in self._chunks:
                await put(chunk)
        except GhostServeError as error:
            logger.error("a stream ended early: %s", error)
            await put(event(error_body(error)))
        except Exception as error:
            await put(event(error_body(error)))
            raise
        await put(b"", more=False)
