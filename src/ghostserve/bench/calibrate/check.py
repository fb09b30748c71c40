"""The simulator held against the real engine: the same scenario in both, side by side."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from ghostserve.bench.calibrate.measure import UNPROTECTED, Calibration, around, constants_of, measure_pair, open_pair
from ghostserve.bench.calibrate.probe import Probe
from ghostserve.bench.calibrate.scenario import Measured, Scenario, make_scenario, run_real, run_simulated
from ghostserve.engine.config import EngineConfig
from ghostserve.fleetsim import Constants

__all__ = ["AIM", "Check", "Checked", "check", "compare"]

AIM = 0.15
"""How far the mean latency and the makespan may be off before the constants count as wrong."""
_AIMED = ("mean", "makespan")


@dataclass(frozen=True)
class Checked:
    """One strategy: each real run, and the simulator's answer with the constants of that run's moment."""

    strategy: str
    runs: tuple[Measured, ...]
    simulated: tuple[Measured, ...]

    def off(self, name: str) -> float:
        """Median over the runs of (simulated - real) / real of the figure `name`; 0 where both are 0."""
        return statistics.median(
            0.0 if real == simulated else (simulated - real) / real if real else float("inf")
            for real, simulated in zip(self.real(name), self.said(name), strict=True)
        )

    def real(self, name: str) -> list[float]:
        """The figure `name` of each real run."""
        return [getattr(run, name) for run in self.runs]

    def said(self, name: str) -> list[float]:
        """What the simulator says of each."""
        return [getattr(run, name) for run in self.simulated]

    @property
    def within(self) -> bool:
        return all(abs(self.off(name)) <= AIM for name in _AIMED)


@dataclass(frozen=True)
class Check:
    """What was run, with which constants, and how it came out."""

    scenario: Scenario
    calibration: Calibration
    checked: tuple[Checked, ...]


def compare(strategy: str, runs: Sequence[Measured], scenario: Scenario, constants: Sequence[Constants]) -> Checked:
    """Each of `runs` against the simulator with its own of `constants`."""
    return Checked(strategy, tuple(runs), tuple(run_simulated(scenario, each, strategy) for each in constants))


def check(
    config: EngineConfig,
    *,
    rounds: int,
    requests: int,
    seed: int,
    progress: Callable[[str], None],
    constants: Constants | None = None,
) -> Check:
    """Measure and run the scenario in turns; then simulate it with the constants that were measured around each run.

    What a step costs is taken from just before and after a run, since a machine drifts; the rest are medians of all
    rounds. No sample of a constant is of a scenario's run. With `constants` only the scenario is measured. Every
    schedule is run again undisturbed: raises `GhostServeError` where a token differs, before any figure is given.
    """
    with ExitStack() as stack:
        pair = open_pair(stack, config, progress)
        measure_pair(pair, 1, progress)  # with given constants too: an engine's first recovery is slower
        first = constants or constants_of(pair, {}).constants
        context = pair["none"].engine.max_model_len
        scenario = make_scenario(first, requests=requests, max_model_len=context, seed=seed)
        runs: dict[str, list[Measured]] = {strategy: [] for strategy in pair}
        for number in range(rounds):
            for strategy, probe in pair.items():
                progress(f"scenario, round {number + 1} of {rounds}: {strategy}")
                runs[strategy].append(run_real(scenario, probe))
            _settle(pair)
            if constants is None:
                measure_pair(pair, 1, progress)
        for probe in pair.values():
            progress(f"{probe.strategy}: comparing with the undisturbed run")
            probe.verify()
    found = constants_of(pair, {}) if constants is None else Calibration(constants, {})
    steps = pair[UNPROTECTED].steps
    each = [constants or around(found.constants, steps, number) for number in range(rounds)]
    checked = tuple(compare(strategy, runs[strategy], scenario, each) for strategy in pair)
    return Check(scenario, found, checked)


def _settle(pair: Mapping[str, Probe]) -> None:
    for probe in pair.values():
        probe.await_standbys()
