"""The suite for codes fails what is broken: one code for each promise, at least."""

import broken_codes as broken
import pytest
from twins import must_fail, without_twin

from ghostserve.codes import Code, ReedSolomonCode
from ghostserve.codes.reference import naive_parity
from ghostserve.testing.codes import CodeConformance

TWINS = [
    ("test_a_served_shape_has_no_reason_against_it", broken.Shy),
    ("test_a_shape_that_is_not_served_is_refused_with_its_number", broken.Takes),
    ("test_a_shape_that_is_not_served_is_refused_with_its_number", broken.Mute),
    ("test_encoding_reads_the_data_and_writes_the_parity", broken.Swapped),
    ("test_plans_can_be_run_from_top_to_bottom", broken.LeavesOut),
    ("test_plans_can_be_run_from_top_to_bottom", broken.ReadsWhatItWrites),
    ("test_plans_can_be_run_from_top_to_bottom", broken.ReadsTheLost),
    ("test_parity_is_what_the_definition_says", broken.OtherMatrix),
    ("test_parity_is_what_the_definition_says", broken.WrongCoefficient),
    ("test_every_loss_comes_back_bit_for_bit", broken.WrongCoefficient),
    ("test_every_loss_comes_back_bit_for_bit", broken.LeavesOut),
    ("test_what_was_asked_for_comes_first_and_ascending", broken.Descending),
    ("test_odd_sizes", broken.WrongCoefficient),
    ("test_what_an_output_held_before_does_not_matter", broken.LeavesOut),
    ("test_equal_codes_give_equal_plans", broken.Whimsical),
    ("test_nothing_lost_is_an_empty_plan", broken.Eager),
    ("test_it_says_which_losses_it_rebuilds", broken.Boastful),
    ("test_too_many_lost_are_refused_with_their_numbers", broken.Careless),
    ("test_shards_that_do_not_exist_are_refused_with_the_ids_that_do", broken.Anywhere),
    ("test_slots_that_can_not_be_cut_into_rows_are_refused_with_the_number", broken.AnySlot),
]


class Suite(CodeConformance):
    shapes = ((3, 2),)
    refused = ((0, 1), (3, 0))

    def __init__(self, kind: type[ReedSolomonCode]) -> None:
        self._kind = kind

    def make_code(self, n: int, k: int) -> Code:
        return self._kind(n, k)

    def definition(self, code, data):
        return naive_parity(code, data)


@pytest.mark.parametrize(("promise", "kind"), TWINS)
def test_what_is_broken_fails(promise: str, kind: type[ReedSolomonCode]) -> None:
    getattr(Suite(ReedSolomonCode), promise)()
    must_fail(Suite(kind), promise)


def test_every_promise_has_a_twin() -> None:
    assert without_twin(CodeConformance, [promise for promise, _ in TWINS]) == set()
