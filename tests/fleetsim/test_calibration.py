"""Constants from samples that were made of known ones, and from a short run of a real engine."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
import pytest
from msgspec.structs import replace

from ghostserve.bench.calibrate.check import check, compare
from ghostserve.bench.calibrate.fits import Kill, Step, StepCosts, fit_overhead, fit_rejoin, fit_restore, fit_steps
from ghostserve.bench.calibrate.measure import around, constants_of, open_pair
from ghostserve.bench.calibrate.scenario import Scenario, make_scenario, run_real, run_simulated
from ghostserve.bench.shapes import SHAPES, make_checkpoint
from ghostserve.bench.workload import bench_config
from ghostserve.cli.main import main
from ghostserve.engine.config import EngineConfig
from ghostserve.errors import ConfigError, GhostServeError
from ghostserve.fleetsim import Constants
from ghostserve.traces import Arrival

COSTS = StepCosts(0.004, 0.002, 0.0002, 0.00003)
KNOWN = Constants(
    ranks=2, prefill_tokens_per_s=30_000.0, decode_step_s=0.004, decode_seq_s=0.0002, prefill_step_s=0.002,
    detect_s=0.03, rejoin_s=0.1, rebuild_bytes_per_s=1e8, kv_bytes_per_token=1024, max_num_seqs=16,
    max_num_batched_tokens=256, standby_s=2.0, standby_overhead=0.5, overhead={"parity:1": 0.1},
)  # fmt: skip


def samples(costs: StepCosts, *, runs: int = 3, noise: float = 0.1, slower: float = 1.0, seed: int = 0) -> list[Step]:
    """Steps with these costs and `noise` of them; the last run takes five times as long, as beside another program."""
    rng = np.random.default_rng(seed)
    found = []
    for run in range(runs):
        for _ in range(400):
            decodes, prefill = int(rng.integers(0, 17)), int(rng.integers(0, 2) * rng.integers(1, 257))
            step = Step(run, decodes, prefill, 0.0)
            burst = 5.0 if run == runs - 1 > 0 else 1.0
            seconds = costs.mean([step]) * slower * burst * float(rng.uniform(1 - noise, 1 + noise))
            found.append(Step(run, decodes, prefill, seconds))
    return found


def test_costs_of_steps_come_back() -> None:
    exact = fit_steps(samples(COSTS, runs=1, noise=0.0))
    for name in ("step", "prefill", "seq", "token"):
        assert getattr(exact, name) == pytest.approx(getattr(COSTS, name), rel=1e-6)
    noisy = fit_steps(samples(COSTS))
    for name, part in (("step", 0.1), ("prefill", 0.3), ("seq", 0.15), ("token", 0.1)):
        assert getattr(noisy, name) == pytest.approx(getattr(COSTS, name), rel=part)
    # The twin: samples of other costs give other costs.
    other = fit_steps(samples(StepCosts(0.008, 0.002, 0.0002, 0.00003)))
    assert other.step != pytest.approx(COSTS.step, rel=0.1)


def test_costs_that_are_not_there_are_nought() -> None:
    found = fit_steps(samples(StepCosts(0.004, 0.0, 0.0, 0.00003), runs=1, noise=0.0))
    assert (found.prefill, found.seq) == (pytest.approx(0, abs=1e-9), pytest.approx(0, abs=1e-9))


def test_steps_that_tell_nothing_are_refused() -> None:
    with pytest.raises(GhostServeError, match="10 steps are too much alike"):
        fit_steps([Step(0, 4, 0, 0.01)] * 10)
    with pytest.raises(GhostServeError, match="no steps were measured"):
        fit_steps([])


def test_overhead_comes_back() -> None:
    plain = samples(COSTS)
    assert fit_overhead(samples(COSTS, slower=1.2, seed=1), plain) == pytest.approx(0.2, abs=0.03)
    assert fit_overhead(samples(COSTS, slower=0.8, seed=1), plain) == 0


def test_a_machine_that_drifts_makes_no_overhead() -> None:
    """From round to round everything takes another time, on both engines alike; of one the middle one is missing."""
    slowness = (1.0, 2.0, 1.1)
    runs = [[replace_run(step, number) for step in samples(COSTS, runs=1, slower=slow, seed=number)]
            for number, slow in enumerate(slowness)]  # fmt: skip
    plain = [step for run in runs for step in run]
    again = [[replace_run(step, number) for step in samples(COSTS, runs=1, slower=1.2 * slow, seed=9 + number)]
             for number, slow in enumerate(slowness)]  # fmt: skip
    protected = [step for run in again[:2] for step in run]
    assert fit_overhead(protected, plain) == pytest.approx(0.2, abs=0.03)
    with pytest.raises(GhostServeError, match="no run has steps of both"):
        fit_overhead(again[2], runs[0])


def replace_run(step: Step, run: int) -> Step:
    return Step(run, step.decodes, step.prefill_tokens, step.seconds)


def test_pause_is_taken_apart() -> None:
    kills = [Kill(0.03, 0.03 + 0.2 + tokens * 512 / 1e8, tokens * 512 / 1e8, tokens, tokens * 512)
             for tokens in (1000, 4000, 16000)]  # fmt: skip
    assert fit_restore(kills) == pytest.approx(1e8)
    assert fit_rejoin(kills, 512, 1e8) == (pytest.approx(0.03), pytest.approx(0.2))
    assert fit_rejoin(kills, 512, 1e7)[1] < 0.05  # the twin: a slower link leaves less to the rejoin
    with pytest.raises(GhostServeError, match="nothing was restored in 1 recoveries"):
        fit_restore([Kill(0.03, 0.2, 0.0, 10, 0)])


@pytest.mark.parametrize("strategy", ["none", "parity:1"])
def test_other_constants_are_told_apart(strategy: str) -> None:
    """A machine that is as KNOWN says passes with KNOWN; with each constant that decides it far off it fails."""
    scenario = make_scenario(KNOWN, requests=80, max_model_len=1024, seed=3)
    truth = [run_simulated(scenario, KNOWN, strategy)] * 3
    assert compare(strategy, truth, scenario, [KNOWN] * 3).within
    for wrong in ({"decode_step_s": 0.006}, {"prefill_tokens_per_s": 5000.0}, {"rejoin_s": 4.0}):
        found = compare(strategy, truth, scenario, [replace(KNOWN, **wrong)] * 3)
        assert not found.within, wrong


def test_a_machine_that_drifts_is_followed() -> None:
    """Each real run is of another speed, and so are the steps around it; the medians of all would be wrong."""
    scenario = make_scenario(KNOWN, requests=80, max_model_len=1024, seed=3)
    slowness = (0.6, 1.0, 1.6)
    speeds = [replace(KNOWN, prefill_tokens_per_s=30_000 / slow, decode_step_s=0.004 * slow, decode_seq_s=0.0002 * slow,
                      prefill_step_s=0.002 * slow) for slow in slowness]  # fmt: skip
    runs = [run_simulated(scenario, speed, "none") for speed in speeds]
    steps: list[Step] = []
    for number, slow in enumerate((0.6, 0.6, 1.4, 1.8)):
        steps += [replace_run(step, number) for step in samples(COSTS, runs=1, slower=slow, seed=number)]
    moments = [around(KNOWN, steps, number) for number in range(3)]
    for speed, moment in zip(speeds, moments, strict=True):
        assert moment.decode_step_s == pytest.approx(speed.decode_step_s, rel=0.1)
    found = compare("none", runs, scenario, moments)
    assert found.within
    assert found.said("mean") == pytest.approx(found.real("mean"), rel=0.15)
    # The twin: with the constants of another moment each is far off.
    other = compare("none", runs, scenario, moments[1:] + moments[:1])
    assert not other.within
    with pytest.raises(GhostServeError, match="no steps were measured"):
        around(KNOWN, steps, 4)


def test_scenario_is_its_seed() -> None:
    def made(seed: int) -> Scenario:
        return make_scenario(KNOWN, requests=30, max_model_len=512, seed=seed)

    assert made(1) == made(1) != made(2)
    for seed in range(50):
        arrivals, kills = made(seed).arrivals, made(seed).kills
        assert arrivals[0].at_seconds < kills[0][0] < kills[-1][0] < arrivals[-1].at_seconds
    assert all(0 <= rank < 2 for _, rank in made(1).kills)
    with pytest.raises(ConfigError, match="at least 10 requests"):
        make_scenario(KNOWN, requests=3, max_model_len=512, seed=0)


def test_a_kill_while_the_standby_starts_waits_for_it() -> None:
    asks = (Arrival(0.0, 10, 400), Arrival(0.1, 10, 400))
    apart = run_simulated(Scenario(asks, ((0.5, 0), (2.7, 0))), KNOWN, "parity:1")
    close = run_simulated(Scenario(asks, ((0.5, 0), (1.5, 0))), KNOWN, "parity:1")
    assert apart.pause == pytest.approx(0.13, abs=0.02)
    assert close.pause == pytest.approx((0.13 + 1.1) / 2, abs=0.02)


def test_a_starting_standby_slows_steps() -> None:
    ask = (Arrival(0.0, 10, 800),)
    quick = replace(KNOWN, detect_s=0.0, rejoin_s=0.0, standby_s=1.0, overhead={})
    kill = Scenario(ask, ((0.5, 0),))
    beside = run_simulated(kill, quick, "replicate-host").makespan
    alone = run_simulated(kill, replace(quick, standby_overhead=0.0), "replicate-host").makespan
    assert beside - alone == pytest.approx(1.0 / 3, abs=0.02)  # 1 s in which steps take 1.5 times as long


def test_refusals(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for words, error in (
        (["--calibrate", "tiny", "--check", "tiny"], "either --calibrate or --check"),
        (["--constants-out", "c.json"], "--constants-out needs --calibrate or --check"),
        (["--calibrate", "tiny", "--constants-out", "/no/such/c.json"], "the folder '/no/such' does not exist"),
        (["--calibrate", "tiny", "--tensor-parallel-size", "1"], "at least 2 to lose a rank, not 1"),
    ):
        assert main(["simulate", *words]) == 2
        assert error in capsys.readouterr().err.replace("\n", " ")


@pytest.mark.parametrize("other", [{"ranks": 4}, {"max_num_seqs": 15}, {"max_num_batched_tokens": 255}])
def test_constants_of_another_engine_are_not_checked(tmp_path: Path, other: dict[str, int]) -> None:
    """Before anything is started: of four ranks the scenario would kill some that two have not."""
    ((name, value),) = other.items()
    with _small(tmp_path) as config, pytest.raises(ConfigError, match=f"have {name} {value}, the engine that is run"):
        check(replace(config, max_num_seqs=16), rounds=1, requests=10, seed=0, progress=lambda text: None,
              constants=replace(KNOWN, **other))  # fmt: skip


def test_plan_takes_constants(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "c.json").write_text('{"ranks": 8, "prefill_tokens_per_s": 1000, "detect_s": 0.5, "rejoin_s": 7}')
    words = ["plan", "llama-3-70b", "--constants", str(tmp_path / "c.json"), "--context", "1000", "--sequences", "1"]
    assert main(words) == 0
    assert "prefill 1000 tokens/s" in capsys.readouterr().out
    assert main([*words, "--tensor-parallel-size", "4"]) == 2
    assert "was measured with 8 ranks, not 4" in capsys.readouterr().err


@contextmanager
def _small(folder: Path) -> Iterator[EngineConfig]:
    make_checkpoint(folder, SHAPES["tiny"])
    config = bench_config(str(folder), 2, "none", kv_cache_memory=16 << 20, max_model_len=256)
    yield replace(config, max_num_seqs=4)


@pytest.mark.slow
def test_a_real_engine_is_measured(tmp_path: Path) -> None:
    """Every constant is a sample of this run; the scenario's streams are whole, and bit by bit the undisturbed ones."""
    with _small(tmp_path) as config, ExitStack() as stack:
        pair = open_pair(stack, config, lambda text: None)
        for probe in pair.values():
            probe.measure_steps()
        pair["parity:1"].measure_kill(128)
        found = constants_of(pair, {})
        scenario = make_scenario(found.constants, requests=10, max_model_len=256, seed=0)
        measured = run_real(Scenario(scenario.arrivals, ()), pair["parity:1"])
        pair["parity:1"].verify()
    constants = found.constants
    assert constants.kv_bytes_per_token == 2 * 2 * 4 * 32 * 2  # K and V, layers, KV heads, values, bytes
    assert (constants.ranks, constants.max_num_seqs, constants.max_num_batched_tokens) == (2, 4, 256)
    kill = pair["parity:1"].kills[0]
    assert kill.restored_bytes * 2 == pytest.approx(kill.tokens * constants.kv_bytes_per_token, rel=0.02)
    assert 0 < constants.detect_s < kill.pause_s
    assert measured.mean >= measured.ttft > 0
    assert {len(probe.kills) for probe in pair.values()} == {0, 1}


@pytest.mark.slow
@pytest.mark.parametrize("given", [False, True])
def test_a_check_has_every_run_with_its_constants(tmp_path: Path, given: bool) -> None:
    """How far off they are is the machine's matter; each real run is there, and simulated with constants of its own."""
    with _small(tmp_path) as config:
        known = replace(KNOWN, max_num_seqs=4) if given else None
        found = check(config, rounds=2, requests=10, seed=4, progress=lambda text: None, constants=known)
    assert {each.strategy for each in found.checked} == {"none", "parity:1"}
    for each in found.checked:
        assert len(each.runs) == len(each.constants) == len(each.simulated) == len(each.offs("mean")) == 2
        for run, constants, said in zip(each.runs, each.constants, each.simulated, strict=True):
            assert 0 < run.ttft <= run.mean <= run.p99
            assert 0 < run.pause < 5
            assert run_simulated(found.scenario, constants, each.strategy) == said
        assert (each.constants == (known, known)) is given
    assert found.calibration.samples.get("runs of steps") == (None if given else 3)
