"""Where the members of a group find each other: a store that the coordinator hosts, so that a wait can be cancelled.

Whoever reaches the port could write into the store. So each rendezvous has a secret, which the coordinator sends its
workers over their socket pairs and nobody else learns.
"""

import secrets
import socket
from datetime import timedelta

from torch.distributed import TCPStore  # type: ignore[attr-defined]

__all__ = ["HOST", "JOIN_TIMEOUT", "Rendezvous", "connect", "host_rendezvous", "secret_prefix"]

HOST = "127.0.0.1"
JOIN_TIMEOUT = timedelta(seconds=15)  # everyone is loaded and was asked at once: this takes milliseconds
_CONNECT_TIMEOUT = timedelta(seconds=5)  # the coordinator listens before it asks anyone to join


class Rendezvous:
    """A hosted store; dropping it makes everyone who waits in it raise."""

    def __init__(self, store: TCPStore) -> None:
        self._store = store
        self.port: int = store.port
        self.secret = secrets.token_hex(32)
        """New for every rendezvous: who knew an older one's is a stranger here."""


def host_rendezvous() -> Rendezvous:
    """A rendezvous that the coordinator hosts on loopback."""
    # Left to itself the store listens on every interface.
    listener = socket.create_server((HOST, 0))
    port = listener.getsockname()[1]
    store = TCPStore(
        HOST,
        port,
        is_master=True,
        wait_for_workers=False,
        timeout=JOIN_TIMEOUT,
        master_listen_fd=listener.detach(),
    )
    return Rendezvous(store)


def connect(port: int) -> TCPStore:
    """A member's way into the store. Raises `OSError` or `RuntimeError` if nobody listens there any more."""
    # A TCPStore client tries again for its whole timeout where nobody listens any more: look first.
    socket.create_connection((HOST, port), _CONNECT_TIMEOUT.total_seconds()).close()
    store = TCPStore(HOST, port, is_master=False, wait_for_workers=False, timeout=_CONNECT_TIMEOUT)
    store.set_timeout(JOIN_TIMEOUT)
    return store


def secret_prefix(epoch: int, secret: str) -> str:
    """Where a store can't be sealed: keys that can't be guessed, though a stranger may list them."""
    return f"epoch-{epoch}-{secret}"
