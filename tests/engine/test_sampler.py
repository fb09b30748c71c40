import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ghostserve.engine.messages import Draw
from ghostserve.engine.sampler import sample

LOGITS = torch.tensor([0.5, 2.0, -1.0, 1.0, 0.0])


def draw(counter=0, *, temperature=1.0, top_p=1.0, top_k=0, seed=3, logprobs=None):
    return Draw(temperature, top_p, top_k, seed, counter, logprobs)


def tokens(count, logits=LOGITS, **how):
    return [sample(logits, "r", draw(i, **how)).token_id for i in range(count)]


def test_greedy_takes_the_best():
    assert set(tokens(20, temperature=0.0)) == {1}


@given(st.integers(-(2**63), 2**63 - 1), st.integers(0, 10**6), st.floats(0.1, 3.0))
def test_the_same_seed_and_counter_draw_the_same(seed, counter, temperature):
    how = draw(counter, seed=seed, temperature=temperature)
    assert sample(LOGITS, "r", how) == sample(LOGITS.clone(), "r", how)


def test_another_seed_or_counter_draws_another_sequence():
    flat = torch.zeros(1000)
    sequences = {tuple(tokens(20, flat, seed=seed)) for seed in range(20)}
    assert len(sequences) == 20
    assert len(set(tokens(20, flat))) > 10


def test_draws_do_not_disturb_torchs_own_generator():
    before = torch.random.get_rng_state()
    tokens(3)
    assert torch.equal(before, torch.random.get_rng_state())


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_draws_follow_the_distribution(temperature):
    count = 4000
    drawn = torch.bincount(torch.tensor(tokens(count, temperature=temperature)), minlength=5)
    expected = torch.softmax(LOGITS / temperature, 0) * count
    assert float(((drawn - expected) ** 2 / expected).sum()) < 18.5, "chi-square, 4 degrees of freedom, p = 0.001"


def test_a_wrong_distribution_would_be_seen():
    count = 4000
    drawn = torch.bincount(torch.tensor(tokens(count, temperature=1.2)), minlength=5)
    expected = torch.softmax(LOGITS, 0) * count
    assert float(((drawn - expected) ** 2 / expected).sum()) > 18.5


@pytest.mark.parametrize(
    ("top_k", "allowed"), [(1, {1}), (2, {1, 3}), (3, {0, 1, 3}), (5, {0, 1, 2, 3, 4}), (99, None)]
)
def test_top_k_keeps_the_best_k(top_k, allowed):
    assert set(tokens(600, top_k=top_k)) == (allowed or {0, 1, 2, 3, 4})


def test_top_p_keeps_the_least_set_that_reaches_p():
    probabilities = torch.softmax(LOGITS, 0)  # 0.56, 0.21, 0.13, 0.08, 0.03
    best = float(probabilities[1])
    assert set(tokens(400, top_p=best - 0.01)) == {1}
    assert set(tokens(400, top_p=best + 0.01)) == {1, 3}
    assert set(tokens(50, top_p=1e-9)) == {1}, "the best one always stays"


def test_top_p_is_of_what_top_k_leaves():
    assert set(tokens(400, top_k=2, top_p=0.72)) == {1}, "0.73 of the two that are left"
    assert set(tokens(400, top_k=2, top_p=0.75)) == {1, 3}


@pytest.mark.parametrize("temperature", [1e-10, 1e-38, 1e-44])
def test_a_tiny_temperature_is_greedy_and_does_not_overflow(temperature):
    assert set(tokens(10, LOGITS * 10, temperature=temperature)) == {1}
    assert set(tokens(10, LOGITS * 10, temperature=temperature, top_p=0.9)) == {1}


def test_logprobs_are_those_of_the_unmodified_distribution():
    sampled = sample(LOGITS, "r", draw(temperature=0.0, top_k=1, logprobs=2))
    reference = torch.log_softmax(LOGITS, 0)
    assert sampled.logprob == float(reference[1])
    assert sampled.top_logprobs == ((1, float(reference[1])), (3, float(reference[3])))
    hot = sample(LOGITS, "r", draw(temperature=2.0, logprobs=0))
    assert math.isclose(hot.logprob, float(reference[hot.token_id]))
    assert hot.top_logprobs == ()
    assert sample(LOGITS, "r", draw()).logprob is None
