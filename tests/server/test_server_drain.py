"""The door while the server goes down: who is inside finishes, up to a limit; who comes is told."""

import asyncio
import time

import pytest
from starlette.responses import PlainTextResponse
from starlette.types import Receive, Scope, Send

from ghostserve.server.drain import Drain


class House:
    """An application whose requests end when they are let go."""

    def __init__(self) -> None:
        self.let_go = asyncio.Event()
        self.finished: list[str] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] == "/broken":
            raise ValueError("on purpose")
        if scope["path"] == "/slow":
            await self.let_go.wait()
        self.finished.append(scope["path"])
        await PlainTextResponse("done")(scope, receive, send)


async def ask(door: Drain, path: str) -> int:
    sent: list[dict[str, object]] = []

    async def send(message: dict[str, object]) -> None:
        sent.append(message)

    async def receive() -> dict[str, object]:
        return {"type": "http.request"}

    await door({"type": "http", "path": path, "method": "GET", "headers": []}, receive, send)
    return int(sent[0]["status"])


def drained(seconds: float, *, let_go: bool) -> tuple[list[int], bool, float]:
    """Close the door on a slow request: what those who come get, whether that one finished, and how long it took."""

    async def play() -> tuple[list[int], bool, float]:
        house = House()
        door = Drain(house, PlainTextResponse("no", status_code=503))
        inside = asyncio.create_task(ask(door, "/slow"))
        with pytest.raises(ValueError, match="on purpose"):
            await ask(door, "/broken")
        assert await ask(door, "/other") == 200
        began = time.monotonic()
        closing = asyncio.create_task(door.close(seconds))
        await asyncio.sleep(0.01)
        assert not closing.done()
        answers = [await ask(door, path) for path in ("/other", "/slow", "/ready", "/health", "/metrics")]
        if let_go:
            house.let_go.set()
        await closing
        taken = time.monotonic() - began
        finished = "/slow" in house.finished
        inside.cancel()
        await asyncio.gather(inside, return_exceptions=True)
        return answers, finished, taken

    return asyncio.run(play())


def test_who_is_inside_finishes_and_who_comes_is_told() -> None:
    answers, finished, taken = drained(60.0, let_go=True)
    assert answers == [503, 503, 503, 200, 200]
    assert finished
    assert taken < 30, "nobody waits for longer than there is something to wait for"


def test_not_longer_than_the_limit() -> None:
    answers, finished, taken = drained(0.1, let_go=False)
    assert answers == [503, 503, 503, 200, 200]
    assert not finished
    assert taken >= 0.1


def test_an_empty_house_closes_at_once() -> None:
    async def play() -> None:
        door = Drain(House(), PlainTextResponse("no", status_code=503))
        await ask(door, "/other")
        await asyncio.wait_for(door.close(60.0), 5)

    asyncio.run(play())
