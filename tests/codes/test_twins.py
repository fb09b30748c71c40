"""Twins of the tests above: something is broken on purpose, and the check must see it."""

from dataclasses import replace

import numpy as np
import pytest
from code_cases import POISON, run, stripe

from ghostserve.codes import Plan, Step, make_code


def mismatches(backend, plan, shards):
    outputs = run(backend, plan, [shards[i] for i in plan.inputs])
    return [s for s, data in zip(plan.outputs, outputs, strict=True) if not np.array_equal(data, shards[s])]


def with_step(plan: Plan, at: int, step: Step) -> Plan:
    return replace(plan, steps=(*plan.steps[:at], step, *plan.steps[at + 1 :]))


@pytest.mark.parametrize("spec", ["xor", "rdp", "rs:2"])
def test_every_wrong_coefficient_shows(backend, spec):
    code = make_code(spec, 4)
    shards = stripe(code, 2, 32)
    plan = code.rebuild_plan(range(code.k))
    assert mismatches(backend, plan, shards) == []
    for at, step in enumerate(plan.steps):
        for term, (source, coefficient) in enumerate(step.terms):
            wrong = (*step.terms[:term], (source, coefficient ^ 3), *step.terms[term + 1 :])
            assert mismatches(backend, with_step(plan, at, Step(step.target, wrong)), shards)


@pytest.mark.parametrize("spec", ["xor", "rdp", "rs:2"])
def test_every_missing_step_shows_the_poison(backend, spec):
    code = make_code(spec, 4)
    shards = stripe(code, 2, 2048)
    plan = code.rebuild_plan(range(code.k))
    for at in range(len(plan.steps)):
        cut = replace(plan, steps=plan.steps[:at] + plan.steps[at + 1 :])
        assert mismatches(backend, cut, shards)


@pytest.mark.parametrize("spec", ["xor", "rdp", "rs:2"])
def test_every_flipped_survivor_byte_shows(backend, spec):
    code = make_code(spec, 4)
    shards = stripe(code, 1, 16)
    plan = code.rebuild_plan(range(code.k))
    for shard in plan.inputs:
        for byte in range(16):
            shards[shard][0, byte] ^= 0x40
            assert mismatches(backend, plan, shards)
            shards[shard][0, byte] ^= 0x40
    assert mismatches(backend, plan, shards) == []


def test_a_wiped_survivor_shows(backend):
    code = make_code("rs:2", 4)
    shards = stripe(code, 1, 16)
    shards[3] = np.full_like(shards[3], POISON)
    assert mismatches(backend, code.rebuild_plan([0]), shards) == [0]
