"""`ghostserve simulate-faults`: one seed with its story, or many with a verdict."""

import os
import time

from rich.console import Console
from rich.progress import Progress

from ghostserve.errors import ConfigError
from ghostserve.faultsim.run import simulate, simulate_many

__all__ = ["run_simulation"]

_SHOWN = 10


def run_simulation(seed: int | None, seeds: int, jobs: int | None) -> int:
    """Replay `seed` with its trace, or run `seeds` of them over `jobs` processes. The exit code: 1 if a promise broke.

    Raises `ConfigError` for numbers below what is allowed.
    """
    for name, value, least in (("seed", seed or 0, 0), ("seeds", seeds, 1), ("jobs", 1 if jobs is None else jobs, 1)):
        if value < least:
            raise ConfigError(f"{name} must be at least {least}, not {value}")
    console = Console(soft_wrap=True, highlight=False)
    if seeds == 1:
        return _one(console, seed or 0)
    return _many(console, seed or 0, seeds, jobs or len(os.sched_getaffinity(0)))


def _one(console: Console, seed: int) -> int:
    outcome = simulate(seed)
    for line in outcome.trace:
        console.print(line, markup=False, style="red" if "BROKEN" in line else "yellow" if "FAULT" in line else None)
    verdict = "a promise was broken" if outcome.violations else "every promise was kept"
    console.print(f"seed {seed}: {verdict}; {outcome.seconds:.1f} virtual seconds", style="bold")
    return 1 if outcome.violations else 0


def _many(console: Console, first: int, count: int, jobs: int) -> int:
    began = time.monotonic()
    broken: list[tuple[int, str]] = []
    recoveries = recomputed = 0
    with Progress(console=console, transient=True) as progress:
        task = progress.add_task("seeds", total=count)
        for outcome in simulate_many(first, count, jobs):
            progress.advance(task)
            recoveries += outcome.recoveries
            recomputed += outcome.recomputed
            if outcome.violations:
                broken.append((outcome.seed, outcome.violations[0]))
    for seed, promise in broken[:_SHOWN]:
        console.print(f"seed {seed}: {promise} (ghostserve simulate-faults --seed {seed})", style="red", markup=False)
    seconds = time.monotonic() - began
    console.print(
        f"{count} seeds, {recoveries} recoveries, {recomputed} requests recomputed,"
        f" {len(broken)} seeds with a broken promise; {seconds:.0f} s, {count / seconds:.0f} seeds a second"
    )
    return 1 if broken else 0
