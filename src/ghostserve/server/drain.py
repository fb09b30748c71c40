"""The door while the server goes down: who is inside finishes, who comes is told so."""

import asyncio

from starlette.types import ASGIApp, Receive, Scope, Send

__all__ = ["Drain"]

_STILL_ANSWERED = frozenset({"/health", "/metrics"})  # a supervisor must not kill what is about to end well


class Drain:
    """ASGI middleware that counts the requests under way; closed, it lets no new one in."""

    def __init__(self, app: ASGIApp, refusal: ASGIApp) -> None:
        """`refusal` answers requests that come after `close`."""
        self._app = app
        self._refusal = refusal
        self._running = 0
        self._empty = asyncio.Event()
        self._empty.set()
        self.closed = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or (self.closed and scope["path"] in _STILL_ANSWERED):
            await self._app(scope, receive, send)
            return
        if self.closed:
            await self._refusal(scope, receive, send)
            return
        self._running += 1
        self._empty.clear()
        try:
            await self._app(scope, receive, send)
        finally:
            self._running -= 1
            if not self._running:
                self._empty.set()

    async def close(self, seconds: float) -> None:
        """Let nobody in from now on; returns when all requests are over, or after `seconds`."""
        self.closed = True
        try:
            async with asyncio.timeout(seconds):
                await self._empty.wait()
        except TimeoutError:
            return
