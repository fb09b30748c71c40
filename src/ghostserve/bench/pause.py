"""The pause that clients see when a worker is killed: with a standby, without one, and by restarting the engine."""

import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass

from ghostserve.bench.workload import Stream, await_standbys, run_streams, seconds_until_next
from ghostserve.engine.config import EngineConfig
from ghostserve.engine.coordinator import Options
from ghostserve.engine.engine import Engine
from ghostserve.engine.launch import nursery
from ghostserve.engine.rerun import rerun
from ghostserve.errors import GhostServeError
from ghostserve.status import RecoveryRecord

__all__ = ["PauseFigure", "bench_pause"]

_STREAMS, _PROMPT, _TOKENS, _KILL_AT = 6, 256, 32, 12


@dataclass(frozen=True)
class PauseFigure:
    """Seconds from the kill until every stream has its next token; `phases` what they went to, in their order."""

    way: str
    seconds: float
    phases: tuple[tuple[str, float], ...] = ()


def bench_pause(
    config: Callable[..., EngineConfig], *, progress: Callable[[str], None], quick: bool = False
) -> list[PauseFigure]:
    """Three ways in one run. The first two are checked bit by bit against an undisturbed run of the same schedule.

    Restart is today's way: the engine is started again, imports and all, and every request is sent again; a stream has
    its next token when it has got back to where it was. `config(standbys=...)` and `config(parity="none", standbys=0)`
    give the settings. `quick`: only the first way.
    """
    figures = []
    ways = ((1, "recovery with a standby"), (0, "recovery without a standby"))
    for standbys, way in ways[:1] if quick else ways:
        progress(f"{way}: starting")
        seconds, phases = _recovery(config(standbys=standbys), progress)
        figures.append(PauseFigure(way, seconds, phases))
    if not quick:
        progress("restart: starting")
        figures.append(PauseFigure("restart and send again", _restart(config(parity="none", standbys=0), progress)))
    return figures


def _recovery(config: EngineConfig, progress: Callable[[str], None]) -> tuple[float, tuple[tuple[str, float], ...]]:
    noticed: list[float] = []

    def observe(name: str, details: dict[str, object]) -> None:
        if name == "lost":
            noticed.append(time.monotonic())

    engine = Engine(config, options=Options(record=True, observer=observe))
    with engine:
        await_standbys(engine, config.standbys)
        noticed.clear()
        killed = _Killer(engine)
        progress("streaming, then SIGKILL")
        streams = run_streams(
            engine, count=_STREAMS, prompt_tokens=_PROMPT, max_tokens=_TOKENS, name="pause", on_token=killed
        )
        records = engine.status().recoveries
    progress("comparing with the undisturbed run")
    result = rerun(config, engine.spec, engine.coordinator.recording, placement=engine.placement)
    if result.differences or result.compared != _STREAMS * _TOKENS:
        raise GhostServeError(f"{len(result.differences)} of {result.compared} tokens differ from the undisturbed run")
    if len(records) != 1 or not noticed:
        raise GhostServeError(f"one recovery was expected, there were {[record.reason for record in records]}")
    seconds = seconds_until_next(streams, killed.at)
    return seconds, _phases(records[0], noticed[0] - killed.at, seconds)


_MEANING = {
    "released": "survivors leave the group",
    "spawned": "a newcomer takes the rank",
    "weights": "it has its weights",
    "rejoined": "new group, caches mapped",
    "rebuilt": "KV rebuilt from parity",
    "replayed": "unprotected steps replayed",
}


def _phases(record: RecoveryRecord, until_noticed: float, total: float) -> tuple[tuple[str, float], ...]:
    """Moments since the detection become durations. Phases overlap: each counts from the end of the one before."""
    found, last = [("the death is noticed", until_noticed)], 0.0
    for name, at in sorted(record.phases, key=lambda mark: mark[1]):
        if name in _MEANING:
            found.append((_MEANING[name], at - last))
            last = at
    return (*found, ("the next token of every stream", total - until_noticed - last))


def _restart(config: EngineConfig, progress: Callable[[str], None]) -> float:
    with Engine(config) as engine:
        progress("streaming, then SIGKILL")
        killed = _Killer(engine, then=engine.coordinator.stop)
        try:
            run_streams(
                engine, count=_STREAMS, prompt_tokens=_PROMPT, max_tokens=_TOKENS, name="pause", on_token=killed
            )
        except GhostServeError:
            progress("restarting")
    nursery(engine.placement.device, engine.placement.environment).close()  # a restarted server would have none
    done = killed.counts
    with Engine(config) as engine:
        streams = run_streams(engine, count=_STREAMS, prompt_tokens=_PROMPT, max_tokens=max(done) + 1, name="again")
    return max(stream.times[count] for stream, count in zip(streams, done, strict=True)) - killed.at


class _Killer:
    """SIGKILLs the last rank once every stream has some tokens."""

    def __init__(self, engine: Engine, then: Callable[[], None] = lambda: None) -> None:
        self._engine = engine
        self._then = then
        self.at = 0.0
        self.counts: list[int] = []

    def __call__(self, streams: list[Stream]) -> None:
        if self.at or min(len(s.tokens) for s in streams) < _KILL_AT:
            return
        self.at = time.monotonic()
        self.counts = [len(s.tokens) for s in streams]
        os.kill(self._engine.status().ranks[-1].pid, signal.SIGKILL)
        self._then()
