"""The part of a soak in which the server lives: streams and strikes by turns, until enough were struck."""

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress

from ghostserve.errors import GhostServeError
from ghostserve.soak.client import Client
from ghostserve.soak.possessions import Possessions
from ghostserve.soak.report import Found
from ghostserve.soak.server import SoakServer
from ghostserve.soak.settings import SoakSettings
from ghostserve.soak.streams import Stream, draw_asks, longest_wait
from ghostserve.soak.striker import Blow, Striker
from ghostserve.soak.strikes import Draws, Strike

__all__ = ["Campaign"]

_SETTLE_SECONDS = 20.0


class Campaign:
    """Runs against a server that has been started; `found` is what there is so far."""

    def __init__(self, settings: SoakSettings, server: SoakServer, on_strike: Callable[[Found], None]) -> None:
        self.found = Found()
        self._settings = settings
        self._server = server
        self._on_strike = on_strike
        self._draws = Draws(settings.seed, ranks=settings.tensor_parallel_size, covered=settings.covered)
        self._before: Possessions | None = None
        self._context = 0

    def run(self) -> Found:
        """An error that ends it early is told in what is found, for there is something to say about the rest."""
        began = time.monotonic()
        try:
            asyncio.run(self._run())
        except GhostServeError as error:
            self.found.broken = str(error)
        self.found.seconds = time.monotonic() - began
        return self.found

    async def _run(self) -> None:
        settings, found = self._settings, self.found
        async with Client(self._server.url, self._server.model_name) as client:
            striker = Striker(self._server, client)
            self._context = await client.context()
            await striker.calm(settings.standbys)
            while len(found.blows) < settings.kills:
                strike = self._draws.next(settings.kills - len(found.blows))
                await self._scene(strike, client, striker)
                if self._before is None:  # what comes with a first recovery is there now
                    await striker.calm(settings.standbys)
                    self._before = await self._possessions(client)
                self._on_strike(found)
                await striker.calm(0 if strike.cold else 1)
            await striker.calm(settings.standbys)
            await self._look_for_leaks(client)
            found.status = await client.status()

    async def _scene(self, strike: Strike, client: Client, striker: Striker) -> None:
        """One strike into streams, or before them where nobody is to run; returns when all have ended."""
        asks = draw_asks(
            strike.seed,
            self._settings.clients,
            context=self._context,
            long=strike.moment in ("prefill", "together"),
            seeded=self._server.seeded,
        )
        streams = [Stream(ask) for ask in asks]
        self.found.streams += streams
        if strike.moment == "idle":
            blows = await striker.carry_out(strike, ())
            await asyncio.gather(*map(client.stream, streams))
        else:
            running = asyncio.gather(*map(client.stream, streams))
            try:
                blows = await striker.carry_out(strike, streams)
                await running
            finally:
                running.cancel()
                with suppress(asyncio.CancelledError):
                    await running
        self._note(blows, streams)
        self.found.rss.append((await self._possessions(client)).rss)

    def _note(self, blows: list[Blow], streams: list[Stream]) -> None:
        self.found.blows += blows
        lost = [blow.at for blow in blows if blow.moment != "standby"]
        wait = longest_wait(streams, min(lost), max(lost)) if lost else None
        if wait is not None:
            self.found.pauses.append(wait)

    async def _possessions(self, client: Client) -> Possessions:
        status = await client.status()
        workers = [rank.pid for rank in status.ranks] + [standby.pid for standby in status.standbys]
        return self._server.possessions(workers)

    async def _look_for_leaks(self, client: Client) -> None:
        """What there is more of than after the first strike; what is only on its way out gets time to go."""
        assert self._before is not None
        deadline = time.monotonic() + _SETTLE_SECONDS
        while (more := (await self._possessions(client)).more_than(self._before)) and time.monotonic() < deadline:
            await asyncio.sleep(0.2)
        self.found.leaks += more
