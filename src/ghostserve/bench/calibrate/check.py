"""The simulator held against the real engine: the same scenario in both, side by side."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import astuple, dataclass

from ghostserve.bench.calibrate.measure import Calibration, constants_of, measure_pair, open_pair
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
    """One strategy: medians of the real runs, each real run, and the simulator's answer."""

    strategy: str
    real: Measured
    runs: tuple[Measured, ...]
    simulated: Measured

    def off(self, name: str) -> float:
        """(simulated - real) / real of the figure `name`; 0 where both are 0."""
        real, simulated = getattr(self.real, name), getattr(self.simulated, name)
        return 0.0 if real == simulated else (simulated - real) / real if real else float("inf")

    @property
    def within(self) -> bool:
        return all(abs(self.off(name)) <= AIM for name in _AIMED)


@dataclass(frozen=True)
class Check:
    """What was run, with which constants, and how it came out."""

    scenario: Scenario
    calibration: Calibration
    checked: tuple[Checked, ...]


def compare(strategy: str, runs: Sequence[Measured], scenario: Scenario, constants: Constants) -> Checked:
    """The medians of `runs`, figure by figure, against the simulator with `constants`."""
    middle = Measured(*(statistics.median(values) for values in zip(*map(astuple, runs), strict=True)))
    return Checked(strategy, middle, tuple(runs), run_simulated(scenario, constants, strategy))


def check(
    config: EngineConfig,
    *,
    rounds: int,
    requests: int,
    seed: int,
    progress: Callable[[str], None],
    constants: Constants | None = None,
) -> Check:
    """Measure and run the scenario in turns, so that a machine that drifts does so for both; then simulate it.

    No sample of a constant is of a scenario's run. With `constants` only the scenario is measured. Every schedule is
    run again undisturbed: raises `GhostServeError` where a token differs, before any figure is given.
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
    checked = tuple(compare(strategy, runs[strategy], scenario, found.constants) for strategy in pair)
    return Check(scenario, found, checked)


def _settle(pair: Mapping[str, Probe]) -> None:
    for probe in pair.values():
        probe.await_standbys()
