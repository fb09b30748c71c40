"""Where the members of a group find each other: a store that the coordinator hosts, so that a wait can be cancelled."""

import socket
from datetime import timedelta

from torch.distributed import TCPStore  # type: ignore[attr-defined]

__all__ = ["HOST", "JOIN_TIMEOUT", "host_rendezvous"]

HOST = "127.0.0.1"
JOIN_TIMEOUT = timedelta(seconds=15)  # everyone is loaded and was asked at once: this takes milliseconds


def host_rendezvous() -> TCPStore:
    """A rendezvous that the coordinator hosts on loopback; dropping it makes everyone who waits in it raise."""
    # Left to itself the store listens on every interface.
    listener = socket.create_server((HOST, 0))
    port = listener.getsockname()[1]
    return TCPStore(
        HOST,
        port,
        is_master=True,
        wait_for_workers=False,
        timeout=JOIN_TIMEOUT,
        master_listen_fd=listener.detach(),
    )
