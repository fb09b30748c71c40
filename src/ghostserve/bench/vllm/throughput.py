"""Tokens a second of vLLM with the plug-in against vLLM without it, side by side in one run."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Protocol

from ghostserve.bench.vllm.engine import BenchEngine
from ghostserve.bench.vllm.work import EngineSettings, Outcome, Work
from ghostserve.errors import GhostServeError

__all__ = ["WORKS", "Runner", "ThroughputFigure", "bench_throughput", "take_turns"]

WORKS = (Work("decode", streams=8, prompt=64, tokens=64), Work("prefill", streams=8, prompt=512, tokens=4))
QUICK = (Work("decode", streams=2, prompt=8, tokens=4),)
STOCK, SAME = "stock", "stock, same collectives"
_REST = 1.5
"""Seconds before a turn: vLLM's queues are polled for one second after their last message."""


class Runner(Protocol):
    """An engine, as far as a comparison needs it."""

    def run(self, work: Work, seed: int) -> Outcome: ...


@dataclass(frozen=True)
class ThroughputFigure:
    """Seconds of each round by engine: stock vLLM as it is, over the plug-in's collectives, and the code's name.

    `agreed`: the share of tokens, up to each stream's first difference, that the first and the last agree in. Sums of
    three or more bfloat16 addends depend on their order, which the collective chooses.
    """

    work: Work
    seconds: Mapping[str, tuple[float, ...]]
    agreed: float

    def speeds(self, name: str) -> list[float]:
        """Tokens a second of each round, those of prompts counted as well."""
        return [self.work.processed / seconds for seconds in self.seconds[name]]

    def ratios(self, name: str, against: str) -> list[float]:
        """How fast `name` is beside `against` in each round."""
        return [b / a for a, b in zip(self.seconds[name], self.seconds[against], strict=True)]

    def ratio(self, name: str, against: str) -> float:
        """The median of the rounds' ratios."""
        return statistics.median(self.ratios(name, against))


def bench_throughput(
    settings: Callable[..., EngineSettings],
    parity: str,
    *,
    rounds: int,
    quick: bool,
    progress: Callable[[str], None],
) -> list[ThroughputFigure]:
    """Three engines live at once: stock vLLM, the same over the plug-in's collectives, and the plug-in, standby ready.

    `settings(**fields)` gives an engine's. Raises `GhostServeError` where tokens differ that must not.
    """
    fields: dict[str, dict[str, Any]] = {
        STOCK: {},
        SAME: {"worker": "ghostserve.bench.vllm.stock_worker.SharedReduceWorker"},
        parity: {"plugin": {"parity": parity, "standbys": 1}},
    }
    with ExitStack() as stack:
        engines: dict[str, BenchEngine] = {}
        for name, own in fields.items():
            progress(f"throughput: starting {name}")
            engines[name] = stack.enter_context(BenchEngine(settings(**own)))
        return [take_turns(engines, work, parity, rounds, progress) for work in (QUICK if quick else WORKS)]


def take_turns(
    engines: Mapping[str, Runner],
    work: Work,
    parity: str,
    rounds: int,
    progress: Callable[[str], None],
    rest: float = _REST,
) -> ThroughputFigure:
    """One after the other and in changing order, so that a drifting machine hits all alike.

    Over the same collectives tokens must be the same with the plug-in and without it, in every round.
    """
    seconds: dict[str, list[float]] = {name: [] for name in engines}
    agreed: list[float] = []
    for number in range(-1, rounds):  # round -1 warms up
        progress(f"{work.name}: " + (f"round {number + 1} of {rounds}" if number >= 0 else "warm-up"))
        tokens = {}
        for name in _order(list(engines), number + 1):
            time.sleep(rest)
            outcome = engines[name].run(work, number + 1)
            tokens[name] = outcome.tokens
            if number >= 0:
                seconds[name].append(outcome.seconds)
        if tokens[parity] != tokens[SAME]:
            raise GhostServeError(f"{work.name}, round {number + 1}: tokens with the plug-in differ from stock vLLM's")
        agreed.append(_agreement(tokens[parity], tokens[STOCK]))
    return ThroughputFigure(work, {name: tuple(values) for name, values in seconds.items()}, statistics.mean(agreed))


def _order(names: list[str], number: int) -> list[str]:
    """Everyone is first, in the middle and last equally often."""
    turned = names[number % len(names) :] + names[: number % len(names)]
    return turned if number // len(names) % 2 else turned[::-1]


def _agreement(one: Sequence[Sequence[int]], other: Sequence[Sequence[int]]) -> float:
    same = total = 0
    for a, b in zip(one, other, strict=True):
        total += len(a)
        same += next((index for index, (x, y) in enumerate(zip(a, b, strict=True)) if x != y), len(a))
    return same / total
