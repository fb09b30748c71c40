"""The open-loop client: requests go out at their times, whether or not the engine keeps up."""

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from ghostserve.bench.online.faults import Case
from ghostserve.bench.online.history import History
from ghostserve.bench.online.load import prompt_tokens
from ghostserve.bench.online.stage import Stage
from ghostserve.errors import GhostServeError
from ghostserve.sampling import SamplingParams
from ghostserve.traces import Arrival

__all__ = ["Played", "Stream", "play"]


@dataclass
class Stream:
    """One request: when it was to be sent, and each token with its time (monotonic seconds)."""

    request_id: str
    arrived: float
    tokens: list[int] = field(default_factory=list)
    times: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Played:
    """One case on one engine: what the clients saw, what the coordinator told, and failures that found no victim."""

    streams: tuple[Stream, ...]
    history: History
    void: int = 0


def play(
    stage: Stage,
    arrivals: Sequence[Arrival],
    case: Case,
    *,
    name: str,
    limit: float,
    progress: Callable[[str], None],
) -> Played:
    """Send all requests, strike as `case` says, wait for every last token. `name` begins the ids of the requests.

    Raises `GhostServeError` if a stream fails, a hit could not strike, or it all takes longer than `limit` seconds.
    """
    stage.await_calm()
    stage.begin({f"{name}-{hit.request}": hit for hit in case.hits})
    streams = [Stream(f"{name}-{index}", 0.0) for index in range(len(arrivals))]
    stage.on_kill = lambda: progress(f"rank killed, {_ended(streams, arrivals)} of {len(arrivals)} requests are over")
    try:
        void = asyncio.run(_everyone(stage, arrivals, streams, case, limit))
    except BaseExceptionGroup as group:
        raise group.exceptions[0] from group
    except TimeoutError as error:
        over = _ended(streams, arrivals)
        raise GhostServeError(
            f"{over} of {len(arrivals)} requests were over after {limit:g} s (--time-limit)"
        ) from error
    if stage.pending_hits:
        raise GhostServeError(f"{stage.pending_hits} of {len(case.hits)} failures never struck")
    stage.await_calm()
    return Played(tuple(streams), stage.history, void)


async def _everyone(
    stage: Stage, arrivals: Sequence[Arrival], streams: Sequence[Stream], case: Case, limit: float
) -> int:
    start = time.monotonic() + 0.05

    async def at(seconds: float) -> None:
        await asyncio.sleep(start + seconds - time.monotonic())

    async def one(index: int, arrival: Arrival) -> None:
        stream = streams[index]
        stream.arrived = start + arrival.at_seconds
        prompt = prompt_tokens(index, arrival.prompt_tokens, stage.engine.spec.vocab_size)
        params = SamplingParams(temperature=0.0, max_tokens=arrival.output_tokens, ignore_eos=True)
        await at(arrival.at_seconds)
        async for output in stage.engine.generate(stream.request_id, prompt, params):
            stream.tokens.append(output.token_id)
            stream.times.append(time.monotonic())

    async def strike(seconds: float, rank: int) -> bool:
        await at(seconds)
        return stage.kill(rank)

    async with asyncio.timeout(limit), asyncio.TaskGroup() as group:
        for index, arrival in enumerate(arrivals):
            group.create_task(one(index, arrival))
        strikes = [group.create_task(strike(timed.at_seconds, timed.rank)) for timed in case.timed]
    return sum(not task.result() for task in strikes)


def _ended(streams: Sequence[Stream], arrivals: Sequence[Arrival]) -> int:
    return sum(len(s.tokens) == a.output_tokens for s, a in zip(streams, arrivals, strict=True))
