"""What was measured becomes rates: known machines are found again."""

import numpy as np
import pytest

from ghostserve.recovery.rates import RateBook


def steps_only(step: float, token: float, key: float, noise: float = 0.0) -> RateBook:
    rng = np.random.default_rng(1)
    made = RateBook()
    for at in range(40):
        made.saw_step(
            64, 64 * (64 * at + 32.5), (step + token * 64 + key * 64 * (64 * at + 32.5)) * (1 + noise * rng.normal())
        )
    for at in range(200):
        made.saw_step(1, 1000 + at, (step + token + key * (1000 + at)) * (1 + noise * rng.normal()))
    return made


def book(step: float, token: float, key: float, noise: float = 0.0) -> RateBook:
    made = steps_only(step, token, key, noise)
    made.saw_rebuild(1000, 0.5)
    return made


@pytest.mark.parametrize(
    ("step", "token", "key"), [(1e-2, 1e-4, 1e-7), (0.0, 1e-4, 1e-7), (1e-2, 1e-4, 0.0), (1e-2, 0.0, 0.0)]
)
def test_a_known_machine_is_found(step: float, token: float, key: float) -> None:
    rates = book(step, token, key).rates()
    assert rates is not None
    assert (rates.step, rates.token, rates.key) == pytest.approx((step, token, key), rel=1e-6, abs=1e-12)
    assert rates.slot == pytest.approx(5e-4)


def test_noise_moves_it_little_and_nothing_is_negative() -> None:
    rates = book(1e-2, 1e-4, 1e-7, noise=0.1).rates()
    assert rates is not None
    assert (rates.step, rates.token, rates.key) == pytest.approx((1e-2, 1e-4, 1e-7), rel=0.25)
    assert min(rates.step, rates.token, rates.key) >= 0


def test_a_rebuild_has_a_part_that_no_slot_is_to_blame_for() -> None:
    made = steps_only(1e-2, 1e-4, 1e-7)
    for slots in (100, 2000, 500):
        for _ in range(3):
            made.saw_rebuild(slots, 0.02 + 1e-5 * slots)
    for _ in range(20):  # the same size over and over: what the others said stays
        made.saw_rebuild(500, 0.02 + 1e-5 * 500)
    rates = made.rates()
    assert rates is not None
    assert (rates.start, rates.slot) == pytest.approx((0.02, 1e-5), rel=0.05)
    assert rates.rebuild(4000) == pytest.approx(0.06, rel=0.05)
    assert rates.rebuild(0) == 0


def test_rebuilds_of_one_size_say_nothing_of_it() -> None:
    made = book(1e-2, 1e-4, 1e-7)
    for slots, seconds in ((1000, 0.6), (1100, 0.5), (900, 0.5)):
        made.saw_rebuild(slots, seconds)
    rates = made.rates()
    assert rates is not None
    assert rates.start == 0
    assert 4e-4 < rates.slot < 6e-4


def test_without_measurements_there_are_no_rates() -> None:
    made = RateBook()
    assert made.rates() is None
    for _ in range(10):
        made.saw_step(1, 100, 0.01)
    made.saw_rebuild(100, 0.1)
    assert made.rates() is None  # decodes alone say nothing about a prefill
    for _ in range(3):
        made.saw_step(64, 64 * 33, 0.05)
    assert made.rates() is not None


def test_decodes_do_not_push_prefills_out() -> None:
    made = book(1e-2, 1e-4, 1e-7)
    for _ in range(5000):
        made.saw_step(1, 100, 0.0101)
    rates = made.rates()
    assert rates is not None
    assert rates.token == pytest.approx(1e-4, rel=0.1)


def test_a_later_recovery_counts_more() -> None:
    made = book(1e-2, 1e-4, 1e-7)
    for _ in range(8):
        made.saw_rebuild(1000, 2.0)
        made.saw_recomputed(100, 0)
        made.saw_both(1.0, 1.0, 1.25)
    rates = made.rates()
    assert rates is not None
    assert rates.slot == pytest.approx(2e-3, rel=0.01)
    assert rates.accepted < 0.01
    assert rates.alongside == pytest.approx(0.8, rel=0.01)
    made.saw_both(1.0, 0.001, 5.0)  # of two so unequal, nothing is learned about the two together
    assert made.rates() == rates
