"""Thousands of fault schedules through the machine; every one ends in serving or in giving up, never in between."""

from collections import Counter

import pytest
from simulator import Simulator

from ghostserve.recovery import events as ev
from ghostserve.recovery.machine import Phase, RecoveryMachine


def run_seeds(seeds, **parts):
    outcomes = Counter()
    for seed in seeds:
        simulator = Simulator(seed, **parts)
        try:
            outcomes[simulator.run()] += 1
        except AssertionError as error:
            raise AssertionError(f"seed {seed} at {simulator.now:.2f} s: {error}") from error
        outcomes["rebuilds"] += simulator.rebuilds
        outcomes["resumes"] += simulator.resumes
    return outcomes


def check(outcomes, seeds):
    assert set(outcomes) <= {Phase.SERVING, Phase.FAILED, "rebuilds", "resumes"}
    assert outcomes[Phase.SERVING] + outcomes[Phase.FAILED] == seeds
    assert outcomes[Phase.SERVING] > 0.8 * seeds
    assert outcomes["rebuilds"] > seeds, "hardly anything was lost: the storm tests nothing"


@pytest.mark.parametrize("world_size", [1, 2, 3, 5])
def test_every_schedule_ends_with_a_whole_group_or_gives_up(world_size):
    check(run_seeds(range(250), world_size=world_size), 250)


@pytest.mark.slow
def test_ten_thousand_schedules():
    check(run_seeds(range(10_000)), 10_000)


class BelievesOldEpochs(RecoveryMachine):
    """Sabotage: takes any `Released` for one of the present epoch."""

    def handle(self, event, now):
        if isinstance(event, ev.Released):
            event = ev.Released(event.worker, self.epoch)
        return super().handle(event, now)


class BelievesOldJoins(RecoveryMachine):
    """Sabotage: takes any `Joined` for one of the present epoch."""

    def handle(self, event, now):
        if isinstance(event, ev.Joined):
            event = ev.Joined(event.worker, self.epoch)
        return super().handle(event, now)


class ForgetsLostRanks(RecoveryMachine):
    """Sabotage: a second loss makes it forget what the first one took."""

    def _begin(self, reason, ranks, now):
        self.lost_ranks.clear()
        return super()._begin(reason, ranks, now)


class WipesAtOnce(RecoveryMachine):
    """Sabotage: does not wait for the survivors before it wipes."""

    def _begin(self, reason, ranks, now):
        commands = super()._begin(reason, ranks, now)
        return [*commands, *(ev.Wipe(rank) for rank in sorted(self.lost_ranks))]


class NeverWipes(RecoveryMachine):
    def handle(self, event, now):
        return [c for c in super().handle(event, now) if not isinstance(c, ev.Wipe)]


class HasNoDeadlines(RecoveryMachine):
    """Sabotage: waits for ever for those who do not answer."""

    def _tick(self, now):
        return []


@pytest.mark.parametrize(
    "machine",
    [BelievesOldEpochs, BelievesOldJoins, ForgetsLostRanks, WipesAtOnce, NeverWipes, HasNoDeadlines],
)
def test_a_machine_without_one_of_its_protections_is_caught(machine):
    with pytest.raises(AssertionError, match="seed"):
        run_seeds(range(1000), machine_type=machine)
