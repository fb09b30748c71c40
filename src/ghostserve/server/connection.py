"""One client's connection, as uvicorn serves it, with an end to everything that a client can hold open.

uvicorn itself waits for ever for a request's head, and for a client to read its answer.
"""

import asyncio
from typing import Any

import h11
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from ghostserve.server.descriptors import HEADROOM
from ghostserve.server.settings import ServerSettings

__all__ = ["GuardedProtocol"]

TIMED_OUT = b"HTTP/1.1 408 Request Timeout\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"


class GuardedProtocol(H11Protocol):
    """Limits the number of connections, the time that a head may take, and the time without a read."""

    def __init__(self, *, settings: ServerSettings, busy: ASGIApp, **uvicorn: Any) -> None:
        """`busy` answers on connections over the limit; `uvicorn`: what uvicorn gives its protocols."""
        super().__init__(**uvicorn)
        self._settings = settings
        self._busy = busy
        self._head: asyncio.TimerHandle | None = None
        self._writes: asyncio.TimerHandle | None = None
        self._paused = False
        self._unsent = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        over = len(self.connections) - self._settings.limit_concurrency
        if over > HEADROOM:
            transport.abort()
            return
        if over > 0:
            self.app = self._busy
        self._watch_head()
        self._watch_writes()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_watching_head()
        if self._writes is not None:
            self._writes.cancel()
        super().connection_lost(exc)
        self._unset_keepalive_if_required()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch_head()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._stop_watching_head()  # a new request has its own time
        if self.cycle is not None and not self.cycle.response_complete:
            return
        if self.timeout_keep_alive_task is None:  # what was pipelined behind it is no whole head yet
            self._watch_head()

    def pause_writing(self) -> None:
        self._paused = True
        super().pause_writing()

    def resume_writing(self) -> None:
        self._paused, self._unsent = False, 0
        super().resume_writing()

    # ---- a request's head, or what is left of a body after its answer

    def _watch_head(self) -> None:
        """The clock runs while no request is being answered, also before its first byte."""
        if self.cycle is not None and not self.cycle.response_complete:
            self._stop_watching_head()
        elif self._head is None and not self.transport.is_closing():
            self._head = self.loop.call_later(self._settings.header_timeout, self._give_up_head)

    def _stop_watching_head(self) -> None:
        if self._head is not None:
            self._head.cancel()
            self._head = None

    def _give_up_head(self) -> None:
        if not self.transport.is_closing():
            if self.conn.our_state is h11.IDLE:  # else it is the rest of a body that was answered already
                self.transport.write(TIMED_OUT)
            self.transport.close()

    # ---- a client that does not read

    def _watch_writes(self) -> None:
        """Nothing is added to a buffer that is full or closing: if it does not shrink, the client takes nothing."""
        unsent = self.transport.get_write_buffer_size() if self._paused or self.transport.is_closing() else 0
        if unsent and unsent == self._unsent:
            self.transport.abort()
            return
        self._unsent = unsent
        self._writes = self.loop.call_later(self._settings.send_timeout / 2, self._watch_writes)
