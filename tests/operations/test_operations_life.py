"""Servers under stress: their own death, no shared memory with a name, hardly any open files, floods, Ctrl-C."""

import contextlib
import os
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import psutil
from served import Served, Streaming, until

from ghostserve.server.descriptors import BACKLOG, HEADROOM

TOKENS = 500
CONNECTIONS = 16
OPEN_FILES = CONNECTIONS + HEADROOM + 4 * BACKLOG + 3 * 5 + 96
"""What `ensure_descriptors` asks for with two ranks and a standby: not one more."""


def test_killed_all_at_once_and_started_again(tiny_llama: str, tmp_path: Path) -> None:
    """The coordinator's SIGKILL takes every worker along, also one that is stopped; nothing is left to clean up.

    The next start takes the same port at once, with /dev/shm full and no more open files than it needs; it lives
    through a flood of connections with a kill in it, and ends well at Ctrl-C.
    """
    with Served(tiny_llama, tmp_path / "first", "--standbys", "0") as first:
        port, pids = first.port, _ranks(first)
        stream = Streaming(first, TOKENS)
        until(lambda: len(stream.token_ids) >= 10)
        os.kill(pids[1], signal.SIGSTOP)
        assert len(first.family()) >= 4, "with the nursery"
        first.process.kill()
        until(lambda: not first.family(), 5)
        stream.join(10)
        assert stream.error is not None
    options = ("--limit-concurrency", str(CONNECTIONS))
    with Served(tiny_llama, tmp_path / "second", *options, port=port, open_files=OPEN_FILES, full_shm=True) as second:
        _check_nothing_in_named_memory(second)
        _check_a_flood_and_a_kill(second)
        _check_ctrl_c(second)


def _check_nothing_in_named_memory(server: Served) -> None:
    """Nobody of it maps or opens anything there: it does not matter that it is full."""
    everything = ""
    for process in server.family():
        everything += Path(f"/proc/{process.pid}/maps").read_text()
        for file in Path(f"/proc/{process.pid}/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):
                everything += f"{os.readlink(file)}\n"
    assert "/dev/shm" not in everything
    assert "memfd:ghostserve-kv" in everything, "there is shared memory, without a name"


def _check_a_flood_and_a_kill(server: Served) -> None:
    """Connections far beyond the limit are cut off, and a rank that dies meanwhile can still be replaced."""
    undisturbed = Streaming(server, TOKENS)
    assert undisturbed.whole()
    victim = _ranks(server)[1]
    stream = Streaming(server, TOKENS)
    until(lambda: len(stream.token_ids) >= 10)
    os.kill(victim, signal.SIGKILL)
    assert len(stream.token_ids) < TOKENS
    with _flood(server.port, 2 * OPEN_FILES) as refused:
        assert stream.whole()
        assert refused() > 0, "it was no flood"
    assert stream.token_ids == undisturbed.token_ids, "alone in the batch both times"
    until(lambda: _answers(server))
    text = server.log.read_text()
    assert "recovered in" in text, text
    assert "Too many open files" not in text
    assert server.post(max_tokens=3).status_code == 200


def _check_ctrl_c(server: Served) -> None:
    """As a terminal sends it, to the whole group, while a nursery is at its imports and a standby waits for it; and
    SIGTERM to nursery and workers too, as service managers do: the running request ends, who comes is told, and then
    all is over.
    """
    until(lambda: [standby["state"] for standby in server.status()["standbys"]] == ["ready"])
    (nursery,) = psutil.Process(server.process.pid).children()
    nursery.kill()
    os.kill(server.status()["standbys"][0]["pid"], signal.SIGKILL)
    stream = Streaming(server, TOKENS)
    until(lambda: len(stream.token_ids) >= 10)
    until(lambda: [standby["state"] for standby in server.status()["standbys"]] == ["starting"])
    ranks = _ranks(server)
    os.killpg(server.process.pid, signal.SIGINT)
    for pid in [*ranks, *(child.pid for child in psutil.Process(server.process.pid).children())]:
        os.kill(pid, signal.SIGTERM)
    until(lambda: server.get("/ready").status_code == 503)
    refused = server.post(max_tokens=3)
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "shutting_down")
    assert refused.headers["retry-after"]
    assert server.get("/health").status_code == 200
    assert len(stream.token_ids) < TOKENS
    assert stream.whole()
    assert server.process.wait(20) == 0
    assert not server.family()
    text = server.log.read_text()
    assert "Traceback" not in text, text


def _ranks(server: Served) -> list[int]:
    return [rank["pid"] for rank in server.status()["ranks"]]


def _answers(server: Served) -> bool:
    """It takes requests again: the flood is gone."""
    with contextlib.suppress(httpx.TransportError):
        return server.get("/ready").status_code == 200
    return False


@contextlib.contextmanager
def _flood(port: int, count: int) -> Iterator[Callable[[], int]]:
    """So many connections that ask nothing; gives a count of those that were cut off already."""
    sockets = []
    try:
        for _ in range(count):
            sockets.append(socket.create_connection(("127.0.0.1", port), 10))
        yield lambda: sum(_is_cut(one) for one in sockets)
    finally:
        for one in sockets:
            one.close()


def _is_cut(one: socket.socket) -> bool:
    one.setblocking(False)
    try:
        return one.recv(1) == b""
    except BlockingIOError:
        return False
    except ConnectionResetError:
        return True
