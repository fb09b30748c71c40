"""Rebuild, recompute and both at once, against context length: what was expected and what it took."""

import os
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import msgspec

from ghostserve.bench.workload import Stream, run_streams
from ghostserve.engine.config import EngineConfig
from ghostserve.engine.coordinator import Options
from ghostserve.engine.engine import Engine
from ghostserve.engine.rerun import Undisturbed
from ghostserve.errors import GhostServeError
from ghostserve.recovery.hybrid import Policy
from ghostserve.status import RecoveryRecord

__all__ = ["POLICIES", "RefillFigure", "bench_hybrid"]

POLICIES: tuple[Policy, ...] = ("rebuild", "recompute", "hybrid")
_TOKENS, _KILL_AT, _WARM = 24, 8, 2
"""A stream's tokens, the one at which a rank is killed, and recoveries before any counts: they teach the rates."""


@dataclass(frozen=True)
class RefillFigure:
    """Seconds of the refill alone, median of `rounds` kills; `predicted` is None where nothing was known."""

    policy: Policy
    context: int
    seconds: float
    predicted: float | None
    recomputed_slots: int
    rejected_slots: int
    rebuilt_slots: int
    plan: tuple[str, ...]


def bench_hybrid(
    config: EngineConfig, contexts: Sequence[int], *, rounds: int, progress: Callable[[str], None]
) -> list[RefillFigure]:
    """One engine a policy; for each context length, `rounds` kills of its last rank while one stream decodes.

    Every schedule is run again undisturbed; raises `GhostServeError` if a token differs, or if a request had to be
    computed from its tokens.
    """
    figures = []
    for policy in POLICIES:
        chosen = msgspec.structs.replace(config, recovery=policy)
        progress(f"{policy}: starting")
        engine = Engine(chosen, options=Options(record=True))
        with engine:
            for number in range(_WARM):
                _kill_once(engine, contexts[0], f"{policy}-warm-{number}")
            for context in contexts:
                records = []
                for number in range(rounds):
                    progress(f"{policy}: {context} tokens, kill {number + 1} of {rounds}")
                    records.append(_kill_once(engine, context, f"{policy}-{context}-{number}"))
                figures.append(_figure(policy, context, records))
        progress(f"{policy}: comparing with the undisturbed run")
        with Undisturbed(engine.spec, engine.placement) as oracle:
            result = oracle.compare(engine.coordinator.recording)
        if result.differences:
            raise GhostServeError(f"{policy}: {len(result.differences)} of {result.compared} tokens differ")
    return figures


def _kill_once(engine: Engine, context: int, name: str) -> RecoveryRecord:
    struck: list[int] = []

    def strike(streams: list[Stream]) -> None:
        if not struck and len(streams[0].tokens) >= _KILL_AT:
            struck.append(engine.status().ranks[-1].pid)
            os.kill(struck[0], signal.SIGKILL)

    before = len(engine.status().recoveries)
    run_streams(engine, count=1, prompt_tokens=context, max_tokens=_TOKENS, name=name, on_token=strike)
    records = engine.status().recoveries[before:]
    if len(records) != 1 or records[0].recomputed_requests:
        raise GhostServeError(f"{name}: one recovery without a request from its tokens was expected: {records}")
    return records[0]


def _figure(policy: Policy, context: int, records: Sequence[RecoveryRecord]) -> RefillFigure:
    middle = sorted(records, key=lambda r: r.refill_seconds)[len(records) // 2]
    return RefillFigure(
        policy,
        context,
        middle.refill_seconds,
        middle.predicted_seconds,
        middle.recomputed_slots,
        middle.rejected_slots,
        context + _KILL_AT - middle.recomputed_slots,
        tuple(middle.plan),
    )
