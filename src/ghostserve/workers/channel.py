"""A message channel over a connected stream socket: 4 bytes of length, then msgpack.

Coordinator and worker get the two ends of a `socketpair` that has no name: no other process can connect, and nothing
is left behind when both are gone.
"""

import contextlib
import socket
import struct
import threading
from typing import Any, Generic, TypeVar

import msgspec

from ghostserve.errors import GhostServeError

__all__ = ["Channel", "ChannelClosedError"]

MAX_MESSAGE = 64 << 20
_SEND_TIMEOUT = 10.0
_LENGTH = struct.Struct("<I")

In = TypeVar("In")


class ChannelClosedError(GhostServeError):
    """The other end is gone, or does not read any more."""


class Channel(Generic[In]):
    """Sends any message struct and receives those of the union `incoming`.

    `send` may be called from several threads. `receive` blocks (worker side); `receive_ready` takes what has arrived
    and never blocks (coordinator side, under a selector).
    """

    def __init__(self, sock: socket.socket, incoming: Any) -> None:
        self.socket = sock
        self._decoder: msgspec.msgpack.Decoder[In] = msgspec.msgpack.Decoder(incoming)
        self._encoder = msgspec.msgpack.Encoder()
        self._lock = threading.Lock()
        self._cut = False
        self._buffer = bytearray()
        # A stopped process does not read: the coordinator must not wait for it for ever.
        seconds = int(_SEND_TIMEOUT)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", seconds, 0))
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 << 20)

    def fileno(self) -> int:
        return self.socket.fileno()

    def send(self, message: msgspec.Struct) -> None:
        """Raises `ChannelClosedError` if the other end is gone or has not read for ten seconds, then and ever after."""
        payload = self._encoder.encode(message)
        if len(payload) > MAX_MESSAGE:
            raise GhostServeError(f"a message of {len(payload)} bytes exceeds the limit of {MAX_MESSAGE}")
        with self._lock:
            # Part of a message may have gone out: another one behind it would be read as its rest.
            if self._cut:
                raise ChannelClosedError("the other end did not take an earlier message")
            try:
                self.socket.sendall(_LENGTH.pack(len(payload)) + payload)
            except OSError as error:
                self._cut = True
                raise ChannelClosedError(f"the other end does not take messages: {error}") from error

    def receive(self) -> In:
        """The next message; blocks. Raises `ChannelClosedError` at the end of the stream."""
        while (message := self._take()) is None:
            self._fill(0)
        return message

    def receive_ready(self) -> list[In]:
        """All whole messages that have arrived. Raises `ChannelClosedError` once the stream has ended and is empty."""
        with contextlib.suppress(BlockingIOError):
            self._fill(socket.MSG_DONTWAIT)
        messages = []
        while (message := self._take()) is not None:
            messages.append(message)
        return messages

    def close(self) -> None:
        self.socket.close()

    def _fill(self, flags: int) -> None:
        try:
            data = self.socket.recv(1 << 20, flags)
        except BlockingIOError:
            raise
        except OSError as error:
            raise ChannelClosedError(f"the channel broke: {error}") from error
        if not data:
            raise ChannelClosedError("the other end has closed the channel")
        self._buffer += data

    def _take(self) -> In | None:
        if len(self._buffer) < _LENGTH.size:
            return None
        (length,) = _LENGTH.unpack_from(self._buffer)
        if length > MAX_MESSAGE:
            raise ChannelClosedError(f"a message of {length} bytes exceeds the limit of {MAX_MESSAGE}")
        end = _LENGTH.size + length
        if len(self._buffer) < end:
            return None
        try:
            message = self._decoder.decode(bytes(memoryview(self._buffer)[_LENGTH.size : end]))
        except msgspec.DecodeError as error:
            raise ChannelClosedError(f"a message can't be read: {error}") from error
        del self._buffer[:end]
        return message
