"""What nurseries of these tests run: workers that do what their argument says, and ways to be prepared."""

import json
import os
import signal
import socket
import threading
import time
from collections.abc import Sequence
from pathlib import Path

REFUSE = "NEWBORN_REFUSE"
"""Names a file: while it is there the nursery can't fork."""
SLOW = "NEWBORN_SLOW"
"""Names a file: until it is there the nursery is at its imports."""


def live(channel: socket.socket, argument: bytes, descriptors: Sequence[int]) -> int:
    """A worker. "tell": who it is, on its channel; "exit N"; "raise"; "wait": until its channel is closed; "sleep"."""
    word, _, number = argument.decode().partition(" ")
    match word:
        case "tell":
            channel.sendall(json.dumps(describe(descriptors)).encode())
        case "exit":
            return int(number)
        case "raise":
            raise ValueError("on purpose")
        case "wait":
            channel.send(b"x")
            channel.recv(1)
        case "sleep":
            channel.send(b"x")
            time.sleep(600)
    return 0


def describe(descriptors: Sequence[int]) -> dict[str, object]:
    return {
        "pid": os.getpid(),
        "name": Path("/proc/self/comm").read_text().strip(),
        "group": os.getpgrp(),
        "session": os.getsid(0),
        "folder": os.getcwd(),
        "environment": dict(os.environ),
        "threads": len(os.listdir("/proc/self/task")),
        "term": signal.getsignal(signal.SIGTERM) == signal.SIG_IGN,
        "open": sorted(number for number in map(int, os.listdir("/proc/self/fd")) if is_open(number)),
        "content": [os.pread(number, 100, 0).decode() for number in descriptors],
        "descriptors": list(descriptors),
    }


def is_open(number: int) -> bool:
    try:
        os.fstat(number)
    except OSError:
        return False
    return True


def nothing() -> None:
    """The imports are all."""


def slowly() -> None:
    """As if there were much to import."""
    while not Path(os.environ[SLOW]).exists():
        time.sleep(0.01)


def with_a_thread() -> None:
    """What no nursery may do."""
    threading.Thread(target=time.sleep, args=(600,), daemon=True).start()


def without_forks() -> None:
    """The system has no process left while a file is there."""
    fork = os.fork

    def refusing() -> int:
        if Path(os.environ[REFUSE]).exists():
            raise BlockingIOError(11, "Resource temporarily unavailable")
        return fork()

    os.fork = refusing


def broken() -> None:
    """An import that fails."""
    raise ImportError("on purpose: a library is missing")
