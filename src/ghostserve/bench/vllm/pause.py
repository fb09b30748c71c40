"""The pause when a rank is killed: the plug-in with a standby, without one, and stock vLLM started again."""

from collections.abc import Callable
from dataclasses import dataclass

from ghostserve.bench.vllm.engine import BenchEngine, rerun_of
from ghostserve.bench.vllm.work import EngineSettings, Outcome, Stream, Work
from ghostserve.errors import GhostServeError
from ghostserve.status import RecoveryRecord

__all__ = ["KILL", "PauseFigure", "Phases", "bench_pause", "caught_up", "phases_of", "resumed"]

KILL = Work("pause", streams=8, prompt=256, tokens=32, kill_at=12)
QUICK = Work("pause", streams=2, prompt=8, tokens=16, kill_at=4)
Settings = Callable[..., EngineSettings]
Phases = tuple[tuple[str, float], ...]


@dataclass(frozen=True)
class PauseFigure:
    """Seconds from each kill until every stream has its next token; `phases`: what each kill's went to, in order."""

    way: str
    seconds: tuple[float, ...]
    phases: tuple[Phases, ...] = ()


def bench_pause(
    settings: Settings, parity: str, *, kills: int, quick: bool, progress: Callable[[str], None]
) -> list[PauseFigure]:
    """Three ways in one run; a figure counts once its tokens are those of an undisturbed run of the same schedule.

    Restart is today's way: stock vLLM is started again and every request is sent again; a stream has its next token
    when it has one more than it had. `settings(**fields)` gives an engine's. `quick`: only the first way.
    """
    work = QUICK if quick else KILL
    figures = []
    ways = ((1, "recovery with a standby"), (0, "recovery without a standby"))
    for standbys, way in ways[: 1 if quick else 2]:
        plugin = {"parity": parity, "standbys": standbys, "record": True}
        figures.append(_recoveries(way, settings(plugin=plugin), work, kills, progress))
    if not quick:
        figures.append(_restarts(settings(), work, kills, progress))
    return figures


def _recoveries(
    way: str, settings: EngineSettings, work: Work, kills: int, progress: Callable[[str], None]
) -> PauseFigure:
    progress(f"{way}: starting")
    with BenchEngine(settings) as engine:
        outcomes = []
        for number in range(kills):
            engine.await_standbys()
            progress(f"{way}: kill {number + 1} of {kills}")
            outcomes.append(engine.run(work, number))
        records = engine.status().recoveries
        engine.stop()
        if len(records) != kills:
            raise GhostServeError(f"{kills} recoveries were expected, there were {[r.reason for r in records]}")
        progress(f"{way}: comparing with the undisturbed run")
        rerun = rerun_of(engine.record)
    wanted = kills * work.streams * work.tokens
    if rerun.differences or rerun.tokens != wanted:
        raise GhostServeError(
            f"{rerun.tokens} of {wanted} tokens were compared with the undisturbed run; differences:"
            f" {rerun.differences[:3]}"
        )
    seconds = tuple(resumed(outcome) for outcome in outcomes)
    return PauseFigure(way, seconds, tuple(map(phases_of, records, seconds)))


def _restarts(settings: EngineSettings, work: Work, kills: int, progress: Callable[[str], None]) -> PauseFigure:
    way = "restart and send again"
    seconds: list[float] = []
    progress(f"{way}: starting")
    engine = BenchEngine(settings)
    try:
        engine.start()
        for number in range(kills):
            progress(f"{way}: kill {number + 1} of {kills}")
            before = engine.run(work, number)
            if not before.died:
                raise GhostServeError("stock vLLM outlived the death of a rank: there is nothing to compare with")
            engine.close(patience=0.0)  # whoever restarts it does not wait for its end
            engine = BenchEngine(settings)
            engine.start()
            again = Work(work.name, work.streams, work.prompt, max(before.counts) + 1)
            seconds.append(caught_up(before, engine.run(again, number)))
    finally:
        engine.close()
    return PauseFigure(way, tuple(seconds))


def resumed(outcome: Outcome) -> float:
    """Seconds from the kill until every stream has its next token."""
    return max(_next(stream, outcome.killed) for stream in outcome.streams) - outcome.killed


def _next(stream: Stream, killed: float) -> float:
    # A token that was drawn before the kill can arrive just after it: the pause is the longest gap that ends later.
    gaps = [(b - a, b) for a, b in zip(stream.times, stream.times[1:], strict=False) if b > killed]
    if not gaps:
        raise GhostServeError("a stream had all of its tokens before the kill")
    return max(gaps)[1]


def caught_up(before: Outcome, after: Outcome) -> float:
    """Seconds from the kill until each stream of the new engine has one token more than it had in the old one.

    Raises `GhostServeError` if the tokens are others.
    """
    for old, new in zip(before.streams, after.streams, strict=True):
        if old.tokens != new.tokens[: len(old.tokens)]:
            raise GhostServeError("the restarted engine's tokens differ from those before the kill")
    ends = [stream.times[count] for stream, count in zip(after.streams, before.counts, strict=True)]
    return max(ends) - before.killed


_MEANING = {
    "released": "survivors leave the group",
    "spawned": "a newcomer takes the rank",
    "weights": "it has its weights",
    "rejoined": "new group, caches mapped",
    "rebuilt": "KV rebuilt from parity",
    "replayed": "unprotected steps replayed",
}


def phases_of(record: RecoveryRecord, total: float) -> Phases:
    """Moments since the detection become durations: each counts from the end of the one before.

    The rest of `total` passes before the detection and between the last phase and the clients.
    """
    found: list[tuple[str, float]] = []
    last = 0.0
    for name, at in sorted(record.phases, key=lambda mark: mark[1]):
        if name in _MEANING:
            found.append((_MEANING[name], at - last))
            last = at
    return (*found, ("noticing the death, and the next token's way", total - last))
