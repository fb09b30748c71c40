"""Any K lost shards come back, bit for bit, from wiped memory, whatever was asked for."""

import numpy as np
import pytest
from code_cases import assert_rebuilds, erasures, run, stripe

from ghostserve.codes import make_code, run_reference

SPECS = ["xor", "rdp", "rs:1", "rs:2", "rs:3", "rs:4"]


def every_pattern(backend, spec, n, slots, slot_bytes):
    code = make_code(spec, n)
    shards = stripe(code, slots, slot_bytes)
    assert all(map(np.array_equal, run(backend, code.encode_plan, shards[:n]), shards[n:]))
    for lost in erasures(code):
        assert_rebuilds(backend, code, shards, lost)


@pytest.mark.parametrize("n", range(1, 9))
@pytest.mark.parametrize("spec", SPECS)
def test_every_pattern_up_to_8_shards(backend, spec, n):
    every_pattern(backend, spec, n, slots=2, slot_bytes=32)


@pytest.mark.slow
@pytest.mark.parametrize("n", range(9, 17))
@pytest.mark.parametrize("spec", SPECS)
def test_every_pattern_up_to_16_shards(backend, spec, n):
    every_pattern(backend, spec, n, slots=1, slot_bytes=16)


@pytest.mark.parametrize("n", [17, 40, 256])
def test_rdp_with_prime_257(backend, n):
    code = make_code("rdp", n)
    assert (code.p, code.rows) == (257, 256)
    shards = stripe(code, 1, 256)
    assert all(map(np.array_equal, run(backend, code.encode_plan, shards[:n]), shards[n:]))
    for lost in [(0,), (0, n - 1), (3, n), (n, n + 1)]:
        assert_rebuilds(backend, code, shards, lost)


@pytest.mark.parametrize(("n", "k"), [(255, 1), (200, 56), (1, 255)])
def test_rs_with_256_shards(backend, n, k):
    code = make_code(f"rs:{k}", n)
    shards = stripe(code, 1, 3)
    lost = tuple(np.random.default_rng(n).choice(n + k, k, replace=False).tolist())
    plan = code.rebuild_plan(lost)
    for shard, data in zip(plan.outputs, run(backend, plan, [shards[i] for i in plan.inputs]), strict=True):
        assert np.array_equal(data, shards[shard])


@pytest.mark.parametrize("spec", SPECS)
def test_plans_run_by_the_reference(spec):
    code = make_code(spec, 5)
    shards = stripe(code, 2, 32)
    assert all(map(np.array_equal, run_reference(code.encode_plan, shards[:5]), shards[5:]))
    for lost in erasures(code):
        plan = code.rebuild_plan(lost)
        for shard, data in zip(plan.outputs, run_reference(plan, [shards[i] for i in plan.inputs]), strict=True):
            assert np.array_equal(data, shards[shard])


@pytest.mark.parametrize("spec", SPECS)
def test_contract_of_plans(spec):
    code = make_code(spec, 6)
    assert code.encode_plan.inputs == tuple(range(6))
    assert code.encode_plan.outputs == tuple(range(6, 6 + code.k))
    nothing = code.rebuild_plan([])
    assert (nothing.inputs, nothing.outputs, nothing.steps) == ((), (), ())
    for lost in erasures(code):
        plan = code.rebuild_plan(lost)
        assert plan.outputs == lost
        # Never more than N shards are fetched, but for rdp's diagonals alone: reading the row parity saves xors.
        assert len(plan.inputs) <= (7 if spec == "rdp" and lost == (7,) else 6)


def test_a_single_rebuild_by_rdp_does_not_read_the_diagonals():
    assert 9 not in make_code("rdp", 8).rebuild_plan([2]).inputs


@pytest.mark.parametrize(("p", "n"), [(5, 4), (17, 16)])
def test_rdp_takes_the_paper_s_optimal_number_of_xors(p, n):
    code = make_code("rdp", n)
    optimum = 2 * p * p - 6 * p + 4
    plans = [code.encode_plan, *(code.rebuild_plan(lost) for lost in [(0, 1), (1, n - 1), (0, n), (2, n)])]
    assert [sum(len(step.terms) - 1 for step in plan.steps) for plan in plans] == [optimum] * len(plans)
