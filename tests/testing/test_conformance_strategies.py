"""The strategies of GhostServe under the suite that it publishes: all of the registry."""

from ghostserve.protect import STRATEGIES, Strategy, make_strategy
from ghostserve.testing.strategies import StrategyConformance


class TestParityXor(StrategyConformance):
    refused = (0,)

    def make_strategy(self) -> Strategy:
        return make_strategy("parity", "xor")


class TestParityRdp(StrategyConformance):
    shards = (1, 3, 5)
    refused = (0, 257)

    def make_strategy(self) -> Strategy:
        return make_strategy("parity", "rdp")


class TestParityRs(StrategyConformance):
    shards = (1, 3, 5)
    refused = (0, 254)

    def make_strategy(self) -> Strategy:
        return make_strategy("parity", "rs:3")


class TestUnprotected(StrategyConformance):
    def make_strategy(self) -> Strategy:
        return make_strategy("none", "rs:2")


class TestReplicateHost(StrategyConformance):
    refused = (0,)

    def make_strategy(self) -> Strategy:
        return make_strategy("replicate-host", "rs:2")


class TestReplicateSsd(StrategyConformance):
    refused = (0,)

    def make_strategy(self) -> Strategy:
        return make_strategy("replicate-ssd", "rs:2")


def test_every_strategy_is_tried() -> None:
    tried = {
        suite().make_strategy().name for suite in StrategyConformance.__subclasses__() if suite.__module__ == __name__
    }
    assert tried == set(STRATEGIES)
