"""A slice of the ten thousand seeds that `make simulate` runs; every one keeps every promise, and the storm is one."""

import os
from collections import Counter

import pytest

from ghostserve.cli.main import main
from ghostserve.faultsim.faults import make_faults
from ghostserve.faultsim.run import simulate, simulate_many
from ghostserve.faultsim.scenario import make_scenario

SLICE = 500


@pytest.fixture(scope="module")
def outcomes(tools):
    return [simulate(seed, tools) for seed in range(SLICE)]


def test_every_promise_is_kept(outcomes):
    broken = {o.seed: o.violations for o in outcomes if o.violations}
    assert not broken, "replay one with: ghostserve simulate-faults --seed S"


def test_the_faults_happen_at_every_point_and_in_every_phase(outcomes):
    seen = Counter()
    for outcome in outcomes:
        for line in outcome.trace:
            for sign in SIGNS:
                seen[sign] += sign in line
    assert all(seen[sign] >= 3 for sign in SIGNS), seen
    assert sum(o.recoveries for o in outcomes) > 1.5 * SLICE
    assert sum(o.recomputed for o in outcomes) > 0.1 * SLICE


SIGNS = [
    *(f"FAULT at {point}" for point in ("start", "load.begin", "join.begin", "release.end", "rebuild.begin")),
    *(f"FAULT at {point}" for point in ("rebuild.end", "step.begin", "step.end", "flush.begin", "flush.encoded")),
    *(") silent", ") busy", ") tear", ") die", "FAULT: standby", "times slower"),
    *("planned: KillInPhase(phase='releasing'", "planned: KillInPhase(phase='rejoining'"),
    *("planned: KillInPhase(phase='rebuilding'", "planned: KillInPhase(phase='replaying'"),
    *("lost: ", "late by", "store's records flips", "store's payload flips", "a bit flips in rank"),
    *("not all with parity", "hangs up", " again: ", "parity covers", "have no parity"),
]


@pytest.mark.parametrize("seed", range(0, 40, 4))
def test_the_same_seed_gives_the_same_story(seed, tools):
    once, again = simulate(seed, tools), simulate(seed)
    assert once == again
    assert len(once.trace) > 10


def test_other_seeds_give_other_stories(outcomes):
    assert len({o.trace for o in outcomes}) == SLICE
    assert make_scenario(3) == make_scenario(3)
    assert make_faults(3, make_scenario(3)) == make_faults(3, make_scenario(3))


def test_a_run_leaves_no_descriptor_behind(tools):
    simulate(0, tools)
    before = len(os.listdir("/proc/self/fd"))
    for seed in range(30):
        simulate(seed, tools)
    assert len(os.listdir("/proc/self/fd")) <= before


def test_processes_share_the_seeds_without_changing_them(outcomes):
    shared = list(simulate_many(0, 120, jobs=2))
    assert [o.seed for o in shared] == list(range(120))
    for alone, other in zip(outcomes, shared, strict=False):
        assert (alone.seconds, alone.recoveries, alone.recomputed) == (
            other.seconds,
            other.recoveries,
            other.recomputed,
        )


def test_the_command_replays_a_seed(capsys):
    assert main(["simulate-faults", "--seed", "7"]) == 0
    told = capsys.readouterr().out
    assert "seed 7:" in told
    assert "every promise was kept" in told
    assert "step 1:" in told


def test_the_command_counts_many(capsys):
    assert main(["simulate-faults", "--seeds", "60", "--jobs", "1"]) == 0
    assert "60 seeds" in capsys.readouterr().out


@pytest.mark.parametrize("words", [["--seed", "-1"], ["--seeds", "0"], ["--seeds", "2", "--jobs", "0"]])
def test_the_command_refuses_bad_numbers(words, capsys):
    assert main(["simulate-faults", *words]) == 2
    assert "must be at least" in capsys.readouterr().err
