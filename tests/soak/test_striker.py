"""A strike into a recovery, however short that is: with a server and a client that are made up."""

import asyncio
import signal

import pytest

from ghostserve.errors import GhostServeError
from ghostserve.soak import striker
from ghostserve.soak.streams import Ask, Stream
from ghostserve.soak.striker import Striker
from ghostserve.soak.strikes import Strike
from ghostserve.status import EngineStatus, RankStatus

STRIKE = Strike(
    number=0, moment="recovery", signal="kill", ranks=(1, 0), delay=0.0, pause=0.0, progress=0.0, cold=False, seed=0
)


class Server:
    """Takes every strike; rank r's first process is 100 + r."""

    def __init__(self) -> None:
        self.struck: list[int] = []

    def strike(self, pid: int, number: signal.Signals) -> bool:
        self.struck.append(pid)
        return True

    def check(self) -> None:
        return


class Client:
    """`recovers`: does a death lead to a recovery? It is never seen while it runs."""

    def __init__(self, server: Server, *, recovers: bool) -> None:
        self._server, self._recovers = server, recovers

    async def recovering(self) -> bool:
        return False

    async def status(self) -> EngineStatus:
        over = self._recovers and bool(self._server.struck)
        ranks = [RankStatus(0, 100, "up"), RankStatus(1, 201 if over else 101, "up")]
        return EngineStatus(state="serving", epoch=2 if over else 1, step=0, watermark=0, ranks=ranks)


def strike(*, recovers: bool) -> list[int]:
    server = Server()
    stream = Stream(Ask(prompt=(5,), max_tokens=1, temperature=0.0, seed=None, after=0.0), token_ids=[7], asked=0.0)
    asyncio.run(Striker(server, Client(server, recovers=recovers)).carry_out(STRIKE, [stream]))  # type: ignore[arg-type]
    return server.struck


def test_a_recovery_that_is_over_between_two_looks_was_one() -> None:
    assert strike(recovers=True) == [101, 100]


def test_a_death_that_leads_to_none_is_a_complaint(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(striker, "_PATIENCE", 0.05)
    with pytest.raises(GhostServeError, match="the death of rank 1 was not noticed"):
        strike(recovers=False)
