"""The simulator held against the real engine: the same scenario in both, side by side."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from ghostserve.bench.calibrate.measure import (
    UNPROTECTED,
    Calibration,
    around,
    constants_of,
    measure_pair,
    open_pair,
    warm_up,
)
from ghostserve.bench.calibrate.probe import Probe
from ghostserve.bench.calibrate.scenario import Measured, Scenario, make_scenario, run_real, run_simulated
from ghostserve.engine.config import EngineConfig
from ghostserve.errors import ConfigError
from ghostserve.fleetsim import Constants

__all__ = ["AIM", "Check", "Checked", "check", "compare"]

AIM = 0.15
"""How far the mean latency and the makespan may be off before the constants count as wrong."""
_AIMED = ("mean", "makespan")


@dataclass(frozen=True)
class Checked:
    """One strategy: each real run, the constants of its moment, and what the simulator says with these."""

    strategy: str
    runs: tuple[Measured, ...]
    constants: tuple[Constants, ...]
    simulated: tuple[Measured, ...]

    def off(self, name: str) -> float:
        """The median of `offs`."""
        return statistics.median(self.offs(name))

    def offs(self, name: str) -> list[float]:
        """(simulated - real) / real of the figure `name` of each run; 0 where both are 0."""
        return [
            0.0 if real == simulated else (simulated - real) / real if real else float("inf")
            for real, simulated in zip(self.real(name), self.said(name), strict=True)
        ]

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
    said = tuple(run_simulated(scenario, each, strategy) for each in constants)
    return Checked(strategy, tuple(runs), tuple(constants), said)


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

    What a step costs is taken from the calibrations before and after a round of runs, since a machine drifts; the rest
    are medians of all rounds. The strategies go first in turn. No sample of a constant is of a scenario's run. With
    `constants` only the scenario is measured. Every schedule is run again undisturbed: raises `GhostServeError` where
    a token differs, before any figure is given, and `ConfigError` for constants of an engine with other settings.
    """
    if constants is not None:
        _refuse_another(constants, config)
    with ExitStack() as stack:
        pair = open_pair(stack, config, progress)
        # With given constants too: an engine's first recovery is slower.
        warm_up(pair[UNPROTECTED], progress)
        measure_pair(pair, 1, progress)
        first = constants or constants_of(pair, {}).constants
        context = pair[UNPROTECTED].engine.max_model_len
        scenario = make_scenario(first, requests=requests, max_model_len=context, seed=seed)
        runs: dict[str, list[Measured]] = {strategy: [] for strategy in pair}
        for number in range(rounds):
            for strategy, probe in sorted(pair.items(), reverse=number % 2 == 1):
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


def _refuse_another(constants: Constants, config: EngineConfig) -> None:
    for name, own in (
        ("ranks", config.tensor_parallel_size),
        ("max_num_seqs", config.max_num_seqs),
        ("max_num_batched_tokens", config.max_num_batched_tokens),
    ):
        if getattr(constants, name) != own:
            raise ConfigError(f"the constants have {name} {getattr(constants, name)}, the engine that is run has {own}")


def _settle(pair: Mapping[str, Probe]) -> None:
    for probe in pair.values():
        probe.await_standbys()
