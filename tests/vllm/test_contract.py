"""Every name of vLLM's that the plug-in uses without being promised it: an upgrade fails here first."""

import importlib
import inspect
import re

import pytest

from ghostserve.vllm.contract import CONTRACT, Use


def found(use: Use) -> bool:
    module, _, name = use.owner.partition(":")
    owner = importlib.import_module(module)
    if name:
        owner = getattr(owner, name)
        if re.search(rf"\b(self\.)?{use.name}\b\s*[:=,)]", inspect.getsource(owner)):
            return True
    return hasattr(owner, use.name)


@pytest.mark.parametrize("use", CONTRACT, ids=lambda use: f"{use.owner.rpartition('.')[2]}.{use.name}")
def test_vllm_still_has_it(use):
    pytest.importorskip("vllm")
    assert found(use), f"{use.owner} has no {use.name} any more ({use.why})"


def test_a_missing_name_is_noticed():
    pytest.importorskip("vllm")
    assert not found(Use("vllm.v1.core.sched.scheduler:Scheduler", "no_such_thing", "for this test"))
    assert not found(Use("vllm.distributed.parallel_state", "no_such_thing", "for this test"))


def test_no_name_is_listed_twice():
    names = [(use.owner, use.name) for use in CONTRACT]
    assert len(set(names)) == len(names)
