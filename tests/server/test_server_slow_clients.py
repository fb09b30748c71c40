"""Clients that dawdle, stop reading, close one half, or vanish: each is given up in time, and nothing stays behind."""

import json
import socket
import struct
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import psutil
import pytest
from running_server import SETTINGS, RunningServer
from server_fakes import FakeEngine

from ghostserve.server import ServerSettings

Eventually = Callable[[Callable[[], object]], None]
HASTY = ServerSettings(
    max_body_bytes=20_000,
    max_choices=8,
    keep_alive_seconds=0.05,
    header_timeout=0.8,
    body_timeout=0.4,
    send_timeout=1.2,
    timeout_keep_alive=1,
    limit_concurrency=8,
)
BODY = json.dumps({"prompt": "the", "max_tokens": 20}).encode()
LONG = json.dumps({"prompt": "the", "max_tokens": 400, "n": 8, "logprobs": 20, "stream": True}).encode()


def head(length: int, *more: bytes) -> bytes:
    lines = [b"POST /v1/completions HTTP/1.1", b"host: x", b"content-length: %d" % length, *more]
    return b"\r\n".join(lines) + b"\r\n\r\n"


@pytest.fixture(scope="module")
def hasty(_engine: FakeEngine) -> Iterator[RunningServer]:
    with RunningServer(_engine, HASTY, send_buffer=4096) as running:
        yield running


@pytest.fixture
def connect(hasty: RunningServer, engine: FakeEngine, eventually: Eventually) -> Iterator[Callable[[], socket.socket]]:
    """Opens connections; afterwards the server has closed its end of each, and answers."""
    port = int(hasty.url.rsplit(":", 1)[1])
    mine: list[socket.socket] = []

    def open_one() -> socket.socket:
        one = socket.socket()
        one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        one.settimeout(10)
        one.connect(("127.0.0.1", port))
        mine.append(one)
        return one

    def served() -> int:
        ends = psutil.Process().net_connections("tcp")
        return sum(end.status != "LISTEN" and bool(end.laddr) and end.laddr.port == port for end in ends)

    yield open_one
    eventually(lambda: served() == 0)
    assert not engine.running
    for one in mine:
        one.close()
    engine.reset()
    assert httpx.post(f"{hasty.url}/v1/completions", content=BODY, timeout=20).status_code == 200


def rest(one: socket.socket) -> bytes:
    """What comes until the server closes."""
    parts = []
    while part := one.recv(65536):
        parts.append(part)
    return b"".join(parts)


def drip(one: socket.socket, data: bytes, pause: float) -> bytes:
    """Send byte by byte until the server has had enough."""
    one.setblocking(False)
    for byte in data:
        try:
            one.send(bytes([byte]))
            answer = one.recv(65536)
        except BlockingIOError:
            time.sleep(pause)
            continue
        except (BrokenPipeError, ConnectionResetError):
            break
        one.settimeout(10)
        return answer + rest(one)
    raise AssertionError("the server took it all")


def test_a_client_that_says_nothing(connect: Callable[[], socket.socket]) -> None:
    assert rest(connect()).startswith(b"HTTP/1.1 408 ")


def test_a_head_that_comes_byte_by_byte(connect: Callable[[], socket.socket]) -> None:
    assert drip(connect(), head(5, b"x-long: " + b"a" * 5000), 0.01).startswith(b"HTTP/1.1 408 ")


def test_a_second_head_that_comes_byte_by_byte(connect: Callable[[], socket.socket]) -> None:
    one = connect()
    one.sendall(b"GET /version HTTP/1.1\r\nhost: x\r\n\r\n")
    assert one.recv(65536).startswith(b"HTTP/1.1 200 ")
    answer = drip(one, head(5, b"x-long: " + b"a" * 5000), 0.01)
    assert b"HTTP/1.1 408 " in answer


def test_an_idle_connection_is_closed(connect: Callable[[], socket.socket]) -> None:
    one = connect()
    one.sendall(b"GET /version HTTP/1.1\r\nhost: x\r\n\r\n")
    assert rest(one).count(b"HTTP/1.1 ") == 1


def test_a_body_that_comes_byte_by_byte(connect: Callable[[], socket.socket], engine: FakeEngine) -> None:
    one = connect()
    one.sendall(head(5000))
    answer = drip(one, b" " * 5000, 0.01)
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b"longer than the 0.4 s allowed" in answer
    assert not engine.seen


def test_a_body_that_goes_on_after_its_refusal(connect: Callable[[], socket.socket]) -> None:
    """Refused by its length alone; what still comes is thrown away, but not for ever."""
    one = connect()
    one.sendall(head(10**9))

    def go_on() -> None:
        for _ in range(1000):
            one.sendall(b" " * 1000)
            time.sleep(0.01)

    with pytest.raises((BrokenPipeError, ConnectionResetError)):
        go_on()


@pytest.mark.parametrize("reset", [False, True])
@pytest.mark.parametrize("sent", [head(100), head(100) + b'{"prompt', head(len(BODY)) + BODY])
def test_a_client_that_vanishes(
    connect: Callable[[], socket.socket], engine: FakeEngine, eventually: Eventually, sent: bytes, reset: bool
) -> None:
    engine.pause_at = 3
    one = connect()
    one.sendall(sent)
    if sent.endswith(BODY):
        eventually(lambda: engine.running)
    if reset:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    one.close()
    eventually(lambda: not engine.running)
    assert len(engine.aborted) == sent.endswith(BODY)


@pytest.mark.parametrize("sent", [b"", head(100)[:20], head(100) + b'{"prompt', head(len(BODY)) + BODY])
def test_a_client_that_closes_one_half_counts_as_gone(
    connect: Callable[[], socket.socket], engine: FakeEngine, eventually: Eventually, sent: bytes
) -> None:
    engine.pause_at = 3
    one = connect()
    one.sendall(sent)
    if sent.endswith(BODY):
        eventually(lambda: engine.running)
    one.shutdown(socket.SHUT_WR)
    assert rest(one) == b""
    eventually(lambda: not engine.running)


def test_a_client_that_does_not_read_its_stream(
    connect: Callable[[], socket.socket], engine: FakeEngine, eventually: Eventually
) -> None:
    one = connect()
    one.sendall(head(len(LONG)) + LONG)
    eventually(lambda: engine.aborted)
    assert not engine.running


def test_a_client_that_reads_slowly_gets_it_all(connect: Callable[[], socket.socket], engine: FakeEngine) -> None:
    one = connect()
    body = json.dumps({"prompt": "the", "max_tokens": 300, "logprobs": 20, "stream": True}).encode()
    one.sendall(head(len(body), b"connection: close") + body)
    got = b""
    while part := one.recv(16384):
        got += part
        time.sleep(0.01)
    assert got.rstrip().endswith(b"0")
    assert b"data: [DONE]" in got[-100:]
    assert not engine.aborted


def test_connections_over_the_limit_are_told_so(connect: Callable[[], socket.socket], hasty: RunningServer) -> None:
    held = [connect() for _ in range(HASTY.limit_concurrency)]
    for one in held:
        one.sendall(head(5))
    late = connect()
    late.sendall(b"GET /version HTTP/1.1\r\nhost: x\r\n\r\n")
    answer = rest(late)
    assert answer.startswith(b"HTTP/1.1 503 ")
    assert b"retry-after: 1" in answer
    assert b"8 connections are open" in answer


def test_a_flood_of_connections_is_cut_off(connect: Callable[[], socket.socket]) -> None:
    crowd = []
    for _ in range(HASTY.limit_concurrency + 64 + 20):
        crowd.append(connect())
        # The server shares this process's interpreter. Were it to accept too late, the system would have the next ones
        # try again in a second, when the first are gone.
        time.sleep(0.002)
    ends = []
    for one in crowd:
        try:
            ends.append(rest(one)[:12])
        except ConnectionResetError:
            ends.append(b"cut off")
    assert ends.count(b"HTTP/1.1 408") <= HASTY.limit_concurrency + 64
    assert ends.count(b"cut off") + ends.count(b"") >= 20


def test_many_bad_clients_at_once_leave_nothing(
    connect: Callable[[], socket.socket], hasty: RunningServer, engine: FakeEngine, eventually: Eventually
) -> None:
    with ThreadPoolExecutor(6) as pool:
        bad = [connect() for _ in range(6)]
        list(pool.map(lambda one: one.sendall(head(len(LONG)) + LONG), bad))
        eventually(lambda: len(engine.aborted) >= 1)
        for one in bad[::2]:
            one.close()
    eventually(lambda: not engine.running)


def test_without_the_deadlines_they_would_stay(engine: FakeEngine, eventually: Eventually) -> None:
    """The twin: a server whose deadlines are far away, and the same clients for longer than the hasty one bears."""
    with RunningServer(engine, SETTINGS, send_buffer=4096) as patient:
        address = ("127.0.0.1", int(patient.url.rsplit(":", 1)[1]))
        with socket.create_connection(address) as silent, socket.create_connection(address) as deaf:
            deaf.sendall(head(len(LONG)) + LONG)
            silent.settimeout(2.0)
            with pytest.raises(TimeoutError):
                silent.recv(1)
            assert len(engine.running) == 8
            assert not engine.aborted
        eventually(lambda: not engine.running)


def test_the_ordinary_limits_are_patient() -> None:
    """The defaults: a person typing a request by hand, a large upload, a laptop that sleeps a moment."""
    assert min(SETTINGS.header_timeout, SETTINGS.body_timeout, SETTINGS.send_timeout) >= 10
