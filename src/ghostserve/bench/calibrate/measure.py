"""All constants of `ghostserve simulate` from short runs of the embedded engine, one engine for each strategy."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace

import msgspec

from ghostserve.bench.calibrate.fits import Step, StepCosts, fit_overhead, fit_rejoin, fit_restore, fit_steps
from ghostserve.bench.calibrate.probe import Probe
from ghostserve.engine.config import EngineConfig
from ghostserve.errors import ConfigError
from ghostserve.fleetsim import Constants

__all__ = ["COPIES", "PROTECTED", "UNPROTECTED", "Calibration", "around", "calibrate", "constants_of", "open_pair",
           "warm_up"]  # fmt: skip

UNPROTECTED, PROTECTED = "none", "parity:1"
COPIES = ("replicate-host", "replicate-ssd")


@dataclass(frozen=True)
class Calibration:
    """The constants, and from how many samples each group of them is the median."""

    constants: Constants
    samples: Mapping[str, int]


def calibrate(config: EngineConfig, *, rounds: int, progress: Callable[[str], None]) -> Calibration:
    """Measure on `config`'s engine; each strategy gets its own. Every schedule is run again undisturbed first.

    Raises `ConfigError` for settings that a rank cannot be lost with, `GhostServeError` where a token differs.
    """
    with ExitStack() as stack:
        pair = open_pair(stack, config, progress)
        measure_pair(pair, rounds, progress)
        for probe in pair.values():
            progress(f"{probe.strategy}: comparing with the undisturbed run")
            probe.verify()
    copies = {}
    for strategy in COPIES:
        progress(f"{strategy}: starting")
        with Probe(strategy, engine_config(config, strategy)) as probe:
            _kills(probe, rounds, progress)
            progress(f"{strategy}: comparing with the undisturbed run")
            probe.verify()
        copies[strategy] = probe
    return constants_of(pair, copies)


def engine_config(config: EngineConfig, strategy: str) -> EngineConfig:
    """`config` with what `strategy` protects with. Lost KV is rebuilt, not recomputed: that is what is measured."""
    name, _, k = strategy.partition(":")
    return msgspec.structs.replace(
        config, protect=name, parity=f"rs:{k}" if k else "none", recovery="rebuild", standbys=1
    )


def open_pair(stack: ExitStack, config: EngineConfig, progress: Callable[[str], None]) -> dict[str, Probe]:
    """The engines with parity and without, both started: they take turns, so that a drifting machine hits both."""
    if config.tensor_parallel_size < 2:
        raise ConfigError(f"tensor_parallel_size must be at least 2 to lose a rank, not {config.tensor_parallel_size}")
    pair = {}
    for strategy in (UNPROTECTED, PROTECTED):
        progress(f"{strategy}: starting")
        pair[strategy] = stack.enter_context(Probe(strategy, engine_config(config, strategy)))
    return pair


def measure_pair(pair: Mapping[str, Probe], rounds: int, progress: Callable[[str], None]) -> None:
    """`rounds` runs of steps on both engines in turn, and as many kills of the one with parity."""
    for number in range(rounds):
        progress(f"steps, round {number + 1} of {rounds}")
        # Each is first in turn: what drifts during a round hits both alike.
        for probe in sorted(pair.values(), key=lambda probe: probe is pair[PROTECTED], reverse=_odd(pair)):
            probe.measure_steps()
    _kills(pair[PROTECTED], rounds, progress)


def warm_up(probe: Probe, progress: Callable[[str], None]) -> None:
    """An engine's first recovery, which does not count."""
    _kills(probe, 0, progress)


def _odd(pair: Mapping[str, Probe]) -> bool:
    return len({step.run for step in pair[UNPROTECTED].steps}) % 2 == 1


def _kills(probe: Probe, rounds: int, progress: Callable[[str], None]) -> None:
    """One that does not count (an engine's first recovery loads what the later ones find loaded), then `rounds`."""
    context = probe.engine.max_model_len // 2
    for number in range(-1, rounds):
        progress(f"{probe.strategy}: {'first kill' if number < 0 else f'kill {number + 1} of {rounds}'}")
        probe.measure_kill(context, counts=number >= 0)


def constants_of(pair: Mapping[str, Probe], copies: Mapping[str, Probe]) -> Calibration:
    """What the probes have measured up to now. A way of copying that is not in `copies` keeps its default rate."""
    plain, parity = pair[UNPROTECTED], pair[PROTECTED]
    spec, config = parity.engine.spec, parity.config
    costs = fit_steps(plain.steps)
    ranks = config.tensor_parallel_size
    token_bytes = spec.cache_layout.slot_bytes * ranks
    rebuild = fit_restore(parity.kills)
    detect, rejoin = fit_rejoin(parity.kills, token_bytes / ranks, rebuild)
    every = [*pair.values(), *copies.values()]
    constants = Constants(
        ranks=ranks,
        **_of_steps(costs),
        detect_s=detect,
        rejoin_s=rejoin,
        cold_start_s=statistics.median(probe.start_seconds for probe in every),
        rebuild_bytes_per_s=rebuild,
        host_copy_bytes_per_s=_rate(copies, "replicate-host", "host_copy_bytes_per_s"),
        ssd_bytes_per_s=_rate(copies, "replicate-ssd", "ssd_bytes_per_s"),
        kv_bytes_per_token=token_bytes,
        max_num_seqs=config.max_num_seqs,
        max_num_batched_tokens=config.max_num_batched_tokens,
        overhead={PROTECTED: fit_overhead(parity.steps, plain.steps)},
        standby_s=_median([s for probe in every for s in probe.standby_seconds]),
        standby_overhead=max(0.0, _median([s for probe in every for s in probe.slow])),
    )
    samples = {
        "runs of steps": len({step.run for step in plain.steps}),
        "steps": len(plain.steps) + len(parity.steps),
        "starts": len(every),
        **{f"kills, {probe.strategy}": len(probe.kills) for probe in every if probe.kills},
        "standbys": sum(len(probe.slow) for probe in every),
    }
    return Calibration(constants, samples)


def around(constants: Constants, steps: Sequence[Step], number: int) -> Constants:
    """`constants` with what a step costs by runs `number` and `number` + 1 of `steps` together: those of a moment.

    What another program or the processor's clock does to a machine for minutes is in these as in what ran between them.
    Raises `GhostServeError` where there are no such steps.
    """
    own = [replace(step, run=0) for step in steps if step.run in (number, number + 1)]
    return msgspec.structs.replace(constants, **_of_steps(fit_steps(own)))


def _rate(copies: Mapping[str, Probe], strategy: str, name: str) -> float:
    probe = copies.get(strategy)
    return getattr(Constants(), name) if probe is None else fit_restore(probe.kills)


def _of_steps(costs: StepCosts) -> dict[str, float]:
    return {
        "prefill_tokens_per_s": 1 / costs.token,
        "decode_step_s": costs.step,
        "prefill_step_s": costs.prefill,
        "decode_seq_s": costs.seq,
    }


def _median(values: Sequence[float]) -> float:
    return statistics.median(values) if values else 0.0
