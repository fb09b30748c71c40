"""Running seeds: one with its whole story, or thousands of them over several processes."""

import logging
import multiprocessing
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from ghostserve.engine import coordinator as coordinator_module
from ghostserve.engine import driver as driver_module
from ghostserve.engine import scrub_driver as scrub_driver_module
from ghostserve.engine import scrubbing as scrubbing_module
from ghostserve.engine.coordinator import Coordinator
from ghostserve.faultsim.clock import Clock
from ghostserve.faultsim.faults import make_faults
from ghostserve.faultsim.history import History
from ghostserve.faultsim.scenario import make_scenario
from ghostserve.faultsim.tools import Tools
from ghostserve.faultsim.world import World

__all__ = ["Outcome", "simulate", "simulate_many"]

_BATCH = 50
"""Seeds that a process takes at a time."""
_SCRUB_PERIOD = 0.02
"""Virtual seconds: runs are short, and something shall always be read while other things happen."""


@dataclass(frozen=True)
class Outcome:
    """`violations`: the promises that were broken, empty if all is well. `trace`: what happened, a line each."""

    seed: int
    violations: tuple[str, ...]
    trace: tuple[str, ...]
    seconds: float
    """Virtual ones."""
    recoveries: int
    recomputed: int


def simulate(seed: int, tools: Tools | None = None) -> Outcome:
    """One run from start to end. The same seed gives the same outcome, line for line."""
    scenario = make_scenario(seed)
    faults = make_faults(seed, scenario)
    clock = Clock()
    world = World(seed, scenario, faults, clock, tools or Tools())
    with _in_simulation(clock, world), _logged(world.history):
        config = scenario.config
        world.history.note(
            f"seed {seed}: {scenario.ranks} ranks, {config.parity}, {scenario.spec.num_blocks} blocks"
            f"{' (not all with parity)' if scenario.short_store else ''}, flush every {config.flush_tokens},"
            f" {config.encoder}, {config.standbys} standbys{', scrubbing' if config.scrub_rate else ''}"
        )
        for fault in faults:
            world.history.note(f"planned: {fault}")
        coordinator = Coordinator(config, scenario.spec, world.options())
        world.furnish(coordinator)
        coordinator.run()  # in this thread: the product's own loop, until `world` says stop
        world.verdict()
        world.close()
    history = world.history
    return Outcome(seed, tuple(history.violations), tuple(history.trace), clock.now, world.recoveries, world.recomputed)


def simulate_many(first: int, count: int, jobs: int) -> Iterator[Outcome]:
    """Outcomes of `count` seeds from `first` on, as they come; the traces only of those that broke a promise."""
    batches = [range(start, min(start + _BATCH, first + count)) for start in range(first, first + count, _BATCH)]
    with ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        for outcomes in pool.map(_batch, batches):
            yield from outcomes


def _batch(seeds: range) -> list[Outcome]:
    tools = Tools()
    outcomes = [simulate(seed, tools) for seed in seeds]
    return [o if o.violations else Outcome(o.seed, (), (), o.seconds, o.recoveries, o.recomputed) for o in outcomes]


@contextmanager
def _in_simulation(clock: Clock, world: World) -> Iterator[None]:
    """The coordinator's only ways out, to the clock, to processes and to a port, lead into the simulation."""
    ways: list[tuple[Any, str, object]] = [
        (coordinator_module, "time", clock),
        (driver_module, "time", clock),
        (scrub_driver_module, "time", clock),
        (scrubbing_module, "PERIOD", _SCRUB_PERIOD),
        (coordinator_module, "make_group", lambda config: world.group),
        (driver_module, "host_rendezvous", lambda: SimpleNamespace(port=0, secret="")),
    ]
    kept = [(module, name, getattr(module, name)) for module, name, _ in ways]
    try:
        for module, name, value in ways:
            setattr(module, name, value)
        yield
    finally:
        for module, name, value in kept:
            setattr(module, name, value)


class _ToHistory(logging.Handler):
    def __init__(self, history: History) -> None:
        super().__init__()
        self._history = history

    def emit(self, record: logging.LogRecord) -> None:
        self._history.note(record.getMessage())
        if record.exc_info is not None:
            self._history.note(logging.Formatter().formatException(record.exc_info))


@contextmanager
def _logged(history: History) -> Iterator[None]:
    """What the product logs goes into the story, and nowhere else."""
    logger, handler = logging.getLogger("ghostserve"), _ToHistory(history)
    level, propagate = logger.level, logger.propagate
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
        logger.propagate = propagate
