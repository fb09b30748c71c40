"""The suite for strategies fails what is broken: one strategy for each promise, at least."""

import broken_strategies as broken
import pytest
from twins import must_fail, without_twin

from ghostserve.protect import Parity, Strategy
from ghostserve.testing.strategies import StrategyConformance

TWINS = [
    ("test_it_has_a_name_and_says_who_writes", broken.Nameless),
    ("test_it_has_a_name_and_says_who_writes", broken.Nobody),
    ("test_the_code_is_over_the_shards_that_there_are", broken.OneShardLess),
    ("test_the_code_is_over_the_shards_that_there_are", broken.Draws),
    ("test_numbers_of_shards_that_are_not_served_are_refused_with_the_number", broken.AtLeastOne),
    ("test_as_many_as_it_covers_come_back_bit_for_bit", broken.WrongCode),
    ("test_no_more_come_back_than_it_says", broken.Modest),
    ("test_no_more_come_back_than_it_says", broken.Useless),
    ("test_what_was_never_flushed_is_not_made_up", broken.MakesUp),
    ("test_a_flush_after_a_fence_commits_nothing", broken.Unfenced),
    ("test_two_stores_have_nothing_in_common", broken.OneStore),
    ("test_it_takes_what_it_says", broken.Understates),
    ("test_it_takes_what_it_says", broken.Litters),
    ("test_another_geometry_is_refused", broken.AttachesAnything),
    ("test_no_room_is_said_before_anything_starts", broken.Shrinks),
    ("test_no_room_is_said_before_anything_starts", broken.Elsewhere),
]


class Suite(StrategyConformance):
    shards = (3,)
    refused = (0,)

    def __init__(self, kind: type[Strategy]) -> None:
        self._kind = kind

    def make_strategy(self) -> Strategy:
        return self._kind("xor")


@pytest.mark.parametrize(("promise", "kind"), TWINS)
def test_what_is_broken_fails(promise: str, kind: type[Strategy]) -> None:
    getattr(Suite(Parity), promise)()
    must_fail(Suite(kind), promise)


def test_every_promise_has_a_twin() -> None:
    assert without_twin(StrategyConformance, [promise for promise, _ in TWINS]) == set()
