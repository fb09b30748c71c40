"""Carries out strikes: waits for the moment, strikes, and says what was true then."""

import asyncio
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ghostserve.errors import GhostServeError
from ghostserve.soak.client import Client
from ghostserve.soak.server import SoakServer
from ghostserve.soak.streams import Stream
from ghostserve.soak.strikes import Signal, Strike
from ghostserve.status import EngineStatus

__all__ = ["Blow", "Striker"]

_TURN = 0.002
_PATIENCE = 180.0
_SIGNALS: dict[Signal, signal.Signals] = {"kill": signal.SIGKILL, "stop": signal.SIGSTOP}


@dataclass(frozen=True)
class Blow:
    """A process that was struck: how, when (monotonic seconds) and in the middle of what, as clients saw it.

    `moment`: prefill (somebody waited for a first token), decode, idle, recovery or standby. `together`: how many were
    struck at the same time.
    """

    signal: Signal
    moment: str
    at: float
    together: int = 1

    @property
    def kind(self) -> str:
        """For the table: such as "SIGKILL decode, 2 at once"."""
        more = f", {self.together} at once" if self.together > 1 else ""
        return f"{_SIGNALS[self.signal].name} {self.moment}{more}"


class Striker:
    """Strikes one server."""

    def __init__(self, server: SoakServer, client: Client) -> None:
        self._server = server
        self._client = client

    async def carry_out(self, strike: Strike, streams: Sequence[Stream]) -> list[Blow]:
        """Returns when it has struck. Fewer blows than asked for: whom it meant was not there at the moment."""
        if strike.moment in ("decode", "together", "recovery", "standby"):
            await self._far(streams, strike.progress)
        elif strike.moment == "prefill":
            await self._until(lambda: any(s.asked is not None for s in streams), "nobody asked for anything")
        await asyncio.sleep(strike.delay)
        if strike.moment == "standby":
            return await self._standby(strike)
        if strike.moment == "recovery":
            return await self._during_recovery(strike, streams)
        status = await self._client.status()
        return self._strike(strike.signal, [_pid(status, rank) for rank in strike.ranks], _moment(streams))

    async def calm(self, standbys: int) -> EngineStatus:
        """Wait until all ranks are up, nothing runs, and so many standbys are ready."""
        deadline = time.monotonic() + _PATIENCE
        while True:
            status = await self._client.status()
            ready = sum(standby.state == "ready" for standby in status.standbys)
            up = status.state == "serving" and all(rank.state == "up" for rank in status.ranks)
            if up and ready >= standbys and status.num_running + status.num_waiting == 0:
                return status
            self._server.check()
            if time.monotonic() > deadline:
                raise GhostServeError(
                    f"not all ranks, or {standbys} standbys, were up within {_PATIENCE:.0f} s: {status}"
                )
            await asyncio.sleep(0.02)

    # ---- inside

    async def _during_recovery(self, strike: Strike, streams: Sequence[Stream]) -> list[Blow]:
        first, *others = strike.ranks
        status = await self._client.status()
        dead = _pid(status, first)
        blows = self._strike("kill", [dead], _moment(streams))
        if not blows:
            return blows
        deadline = time.monotonic() + _PATIENCE
        # A recovery can be over between two looks: then only its epoch is left of it.
        while not await self._client.recovering() and (await self._client.status()).epoch == status.epoch:
            if time.monotonic() > deadline:
                raise GhostServeError(f"the death of rank {first} was not noticed within {_PATIENCE:.0f} s")
            await asyncio.sleep(_TURN)
        await asyncio.sleep(strike.pause)
        status = await self._client.status()
        # Its successor may not be known yet; once the recovery is over there is nothing to wait for.
        while others == [first] and _pid(status, first) in (0, dead) and status.state == "recovering":
            await asyncio.sleep(_TURN)
            status = await self._client.status()
        moment = "recovery" if status.state == "recovering" else _moment(streams)
        return blows + self._strike(strike.signal, [_pid(status, rank) for rank in others], moment)

    async def _standby(self, strike: Strike) -> list[Blow]:
        standbys = (await self._client.status()).standbys
        if not standbys:
            return []
        return self._strike(strike.signal, [standbys[strike.ranks[0] % len(standbys)].pid], "standby")

    def _strike(self, how: Signal, pids: Sequence[int], moment: str) -> list[Blow]:
        struck = [time.monotonic() for pid in pids if pid and self._server.strike(pid, _SIGNALS[how])]
        return [Blow(how, moment, at, len(struck)) for at in struck]

    async def _far(self, streams: Sequence[Stream], part: float) -> None:
        """Until somebody has that part of its tokens."""
        await self._until(
            lambda: any(len(s.token_ids) > part * s.ask.max_tokens or s.over for s in streams), "nobody got a token"
        )

    async def _until(self, condition: Callable[[], bool], complaint: str) -> None:
        deadline = time.monotonic() + _PATIENCE
        while not condition():
            self._server.check()
            if time.monotonic() > deadline:
                raise GhostServeError(f"{complaint} within {_PATIENCE:.0f} s")
            await asyncio.sleep(_TURN)


def _pid(status: EngineStatus, rank: int) -> int:
    """0 where nobody holds it."""
    return next((found.pid for found in status.ranks if found.rank == rank), 0)


def _moment(streams: Sequence[Stream]) -> str:
    """What the clients are in the middle of."""
    running = [stream for stream in streams if stream.running]
    if any(not stream.token_ids for stream in running):
        return "prefill"
    return "decode" if running else "idle"
