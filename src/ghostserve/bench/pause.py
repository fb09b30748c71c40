"""The pause that clients see when a worker is killed: with a standby, without one, and by restarting the engine."""

import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass

from ghostserve.bench.workload import Stream, bench_config, run_streams
from ghostserve.engine.coordinator import Options
from ghostserve.engine.engine import Engine
from ghostserve.engine.rerun import rerun
from ghostserve.errors import GhostServeError

__all__ = ["PauseFigure", "bench_pause"]

_STREAMS, _PROMPT, _TOKENS, _KILL_AT = 6, 256, 32, 12


@dataclass(frozen=True)
class PauseFigure:
    """Seconds from the kill until every stream has its next token."""

    way: str
    seconds: float


def bench_pause(
    model: str, tensor_parallel_size: int, parity: str, *, progress: Callable[[str], None]
) -> list[PauseFigure]:
    """Three ways in one run. The first two are checked bit by bit against an undisturbed run of the same schedule.

    Restart is today's way: the engine is started again and every request is sent again; a stream has its next token
    when it has got back to where it was.
    """
    figures = []
    for standbys, way in ((1, "recovery with a standby"), (0, "recovery without a standby")):
        progress(f"{way}: starting")
        figures.append(PauseFigure(way, _recovery(model, tensor_parallel_size, parity, standbys, progress)))
    progress("restart: starting")
    figures.append(PauseFigure("restart and send again", _restart(model, tensor_parallel_size, progress)))
    return figures


def _recovery(model: str, tp: int, parity: str, standbys: int, progress: Callable[[str], None]) -> float:
    engine = Engine(bench_config(model, tp, parity, standbys=standbys), options=Options(record=True))
    with engine:
        _wait_for_standbys(engine, standbys)
        killed = _Killer(engine)
        progress("streaming, then SIGKILL")
        streams = run_streams(
            engine, count=_STREAMS, prompt_tokens=_PROMPT, max_tokens=_TOKENS, name="pause", on_token=killed
        )
    progress("comparing with the undisturbed run")
    result = rerun(engine.coordinator.config, engine.spec, engine.coordinator.recording)
    if result.differences or result.compared != _STREAMS * _TOKENS:
        raise GhostServeError(f"{len(result.differences)} of {result.compared} tokens differ from the undisturbed run")
    return _seconds_until_next(streams, killed.at)


def _restart(model: str, tp: int, progress: Callable[[str], None]) -> float:
    config = bench_config(model, tp, "none", standbys=0)
    with Engine(config) as engine:
        progress("streaming, then SIGKILL")
        killed = _Killer(engine, then=engine.coordinator.stop)
        try:
            run_streams(
                engine, count=_STREAMS, prompt_tokens=_PROMPT, max_tokens=_TOKENS, name="pause", on_token=killed
            )
        except GhostServeError:
            progress("restarting")
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


def _seconds_until_next(streams: list[Stream], killed_at: float) -> float:
    # A token that was drawn before the kill can arrive just after it: the pause is the longest gap that ends later.
    return max(_longest_gap_after(stream, killed_at)[1] for stream in streams) - killed_at


def _longest_gap_after(stream: Stream, moment: float) -> tuple[float, float]:
    gaps = [(a, b) for a, b in zip(stream.times, stream.times[1:], strict=False) if b > moment]
    return max(gaps, key=lambda gap: gap[1] - gap[0])


def _wait_for_standbys(engine: Engine, count: int, seconds: float = 120.0) -> None:
    deadline = time.monotonic() + seconds
    while sum(s.state == "ready" for s in engine.status().standbys) < count:
        if time.monotonic() > deadline:
            raise GhostServeError(f"no {count} standbys were ready within {seconds:.0f} s")
        time.sleep(0.1)
