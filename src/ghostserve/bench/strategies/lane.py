"""One live engine under one strategy, and what is measured of it."""

import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass

from ghostserve.bench.strategies.watch import Watch
from ghostserve.bench.strategies.ways import Way
from ghostserve.bench.workload import Stream, await_standbys, run_streams, seconds_until_next
from ghostserve.engine.config import EngineConfig
from ghostserve.engine.coordinator import Options
from ghostserve.engine.engine import Engine
from ghostserve.engine.rerun import Undisturbed
from ghostserve.errors import GhostServeError

__all__ = ["Decode", "Killed", "Lane", "Prefill"]

_KILL_AT, _TOKENS = 4, 10


@dataclass(frozen=True)
class Prefill:
    """`seconds` from the request to its first token; `checkpoint`: see `Watch`; `tokens` are compared."""

    seconds: float
    checkpoint: float
    tokens: tuple[int, ...]


@dataclass(frozen=True)
class Decode:
    """Of all streams together."""

    tokens_per_s: float
    tokens: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Killed:
    """`pause`: from the kill until every stream has its next token. `restore`: the part of it in which KV comes back.

    That is the refill; where requests are computed from their tokens, from the moment steps run again until every
    stream has its next token. `predicted`: of the refill, where the engine knew its rates.
    """

    pause: float
    restore: float
    predicted: float | None
    replayed_steps: int
    recomputed_slots: int
    rejected_slots: int
    plan: tuple[str, ...]


class Lane:
    """A context manager; `verify` holds everything that ran against the undisturbed run of the same schedule."""

    def __init__(self, way: Way, config: EngineConfig, *, standbys: int = 1, skip_rebuild: bool = False) -> None:
        """`skip_rebuild`: sabotage, see `Options`."""
        self.way, self.watch = way, Watch()
        self.engine = Engine(
            way.settings(config, standbys=standbys),
            options=Options(record=True, observer=self.watch, skip_rebuild=skip_rebuild),
        )
        self._standbys, self._number = standbys, 0

    def __enter__(self) -> "Lane":
        self.engine.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.engine.stop()

    def await_standbys(self) -> None:
        await_standbys(self.engine, self._standbys)

    def prefill(self, context: int, *, sequences: int = 1) -> Prefill:
        """`sequences` prompts of `context` tokens, one token drawn of each."""
        self.watch.clear()
        began = time.monotonic()
        streams = self._run(sequences, context, 1)
        seconds = max(stream.times[-1] for stream in streams) - began
        return Prefill(seconds, self.watch.checkpoint_seconds(), tuple(s.tokens[0] for s in streams))

    def decode(self, *, sequences: int, prompt: int, tokens: int) -> Decode:
        """`sequences` streams from their first token to their last."""
        streams = self._run(sequences, prompt, tokens)
        first, last = max(s.times[0] for s in streams), max(s.times[-1] for s in streams)
        later = sum(sum(at > first for at in s.times) for s in streams)
        return Decode(later / (last - first), tuple(tuple(s.tokens) for s in streams))

    def kill(self, context: int, *, sequences: int = 1) -> Killed:
        """SIGKILL of the last rank while `sequences` streams of `context` tokens decode."""
        struck: list[float] = []

        def strike(streams: list[Stream]) -> None:
            if not struck and min(len(s.tokens) for s in streams) >= _KILL_AT:
                struck.append(time.monotonic())
                os.kill(self.engine.status().ranks[-1].pid, signal.SIGKILL)

        self.await_standbys()
        before = len(self.engine.status().recoveries)
        streams = self._run(sequences, context, self._outlasting(sequences, context), on_token=strike)
        records = self.engine.status().recoveries[before:]
        kept = self.way.protect != "none"
        expected = 0 if kept else sequences
        if len(records) != 1 or records[0].recomputed_requests != expected:
            raise GhostServeError(
                f"{self.way.name}: one recovery with {expected} requests from their tokens was expected: {records}"
            )
        pause = seconds_until_next(streams, struck[0])
        again = struck[0] + pause - self.watch.resumed_after(struck[0])
        record = records[0]
        return Killed(
            pause=pause,
            restore=record.refill_seconds if kept else again,
            predicted=record.predicted_seconds,
            replayed_steps=record.replayed_steps,
            recomputed_slots=record.recomputed_slots,
            rejected_slots=record.rejected_slots,
            plan=tuple(record.plan),
        )

    def _outlasting(self, sequences: int, context: int) -> int:
        """So many tokens that the first stream still decodes when the last prompt has been read."""
        a_step = max(1, self.engine.coordinator.config.max_num_batched_tokens - sequences)
        return _TOKENS + (sequences - 1) * (-(-context // a_step) + 1)

    def verify(self, oracle: Undisturbed) -> None:
        """Raises `GhostServeError` if a token or logprob is not that of the undisturbed run. The engine is stopped."""
        found = oracle.compare(self.engine.coordinator.recording)
        if found.differences or not found.compared:
            raise GhostServeError(
                f"{self.way.name}: {len(found.differences)} of {found.compared} tokens differ from the undisturbed run"
            )

    def _run(
        self, count: int, prompt: int, tokens: int, on_token: Callable[[list[Stream]], None] = lambda streams: None
    ) -> list[Stream]:
        self._number += 1  # a request's name is its own
        return run_streams(
            self.engine,
            count=count,
            prompt_tokens=prompt,
            max_tokens=tokens,
            name=f"{self.way.protect}-{self._number}",
            on_token=on_token,
        )
