"""Rebuild, recompute and both at once, against context length: what was expected and what it took."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from statistics import median

from ghostserve.bench.spread import Spread
from ghostserve.bench.strategies.lane import Killed, Lane
from ghostserve.bench.strategies.ways import Way
from ghostserve.engine.config import EngineConfig
from ghostserve.engine.rerun import Undisturbed
from ghostserve.recovery.hybrid import Policy

__all__ = ["POLICIES", "RefillFigure", "bench_hybrid"]

POLICIES: tuple[Policy, ...] = ("rebuild", "recompute", "hybrid")
_SITTING = 2
"""Rounds after which all engines are started anew: equal ones differ by a third, for as long as they live."""


@dataclass(frozen=True)
class RefillFigure:
    """Seconds of the refill alone; `of_measured`: of each kill, expected / measured, None where nothing was known.

    `plan`: the reasons of the last kill's plan.
    """

    policy: Policy
    context: int
    seconds: Spread
    of_measured: Spread | None
    recomputed_slots: float
    rejected_slots: float
    plan: tuple[str, ...]


def bench_hybrid(
    config: EngineConfig,
    parity: str,
    contexts: Sequence[int],
    *,
    rounds: int,
    progress: Callable[[str], None],
    warm: bool = True,
) -> list[RefillFigure]:
    """An engine a policy, all live at once; for each context length `rounds` kills of each one's last rank, in turns.

    Every schedule is run again undisturbed: raises `GhostServeError` if a token differs, or if a request had to be
    computed from its tokens.
    """
    killed: dict[tuple[Policy, int], list[Killed]] = {(p, c): [] for p in POLICIES for c in contexts}
    for first in range(0, rounds, _SITTING):
        turns = range(first, min(first + _SITTING, rounds))
        for policy, context, kill in _sitting(config, parity, contexts, turns, rounds, progress, warm=warm):
            killed[policy, context].append(kill)
    return [_figure(policy, context, found) for (policy, context), found in killed.items()]


def _sitting(
    config: EngineConfig,
    parity: str,
    contexts: Sequence[int],
    turns: range,
    rounds: int,
    progress: Callable[[str], None],
    *,
    warm: bool,
) -> list[tuple[Policy, int, Killed]]:
    """The rounds `turns` of `rounds`, on engines of their own."""
    found: list[tuple[Policy, int, Killed]] = []
    with ExitStack() as stack:
        lanes: dict[Policy, Lane] = {}
        for policy in _turned(turns.start // _SITTING):
            progress(f"{policy}: starting")
            lanes[policy] = stack.enter_context(Lane(Way(policy, "parity", parity, policy), config))
        # Before any counts: they teach the rates. The first recovery of an engine is slower than all others.
        for context in (contexts[0], contexts[0], contexts[-1]) if warm else ():
            for policy in lanes:
                progress(f"{policy}: warm-up with {context} tokens")
                _kill(lanes, policy, context)
        for context in contexts:
            for number in turns:
                for policy in _turned(number):
                    progress(f"{policy}: {context} tokens, kill {number + 1} of {rounds}")
                    found.append((policy, context, _kill(lanes, policy, context)))
    engine = lanes[POLICIES[0]].engine
    with Undisturbed(engine.spec, engine.placement) as oracle:
        for policy, lane in lanes.items():
            progress(f"{policy}: comparing with the undisturbed run")
            lane.verify(oracle)
    return found


def _turned(number: int) -> tuple[Policy, ...]:
    """Who comes first changes."""
    shift = number % len(POLICIES)
    return (*POLICIES[shift:], *POLICIES[:shift])


def _kill(lanes: Mapping[Policy, Lane], policy: Policy, context: int) -> Killed:
    for lane in lanes.values():
        lane.await_standbys()  # their start would take the processor from what is measured
    return lanes[policy].kill(context)


def _figure(policy: Policy, context: int, killed: Sequence[Killed]) -> RefillFigure:
    ratios = [k.predicted / k.restore for k in killed if k.predicted is not None]
    return RefillFigure(
        policy,
        context,
        Spread.of([k.restore for k in killed]),
        Spread.of(ratios) if ratios else None,
        median(k.recomputed_slots for k in killed),
        median(k.rejected_slots for k in killed),
        killed[-1].plan,
    )
