"""`python -m ghostserve.vllm.launch`: what the processes do first that vLLM spawns from it."""

import gc
import runpy
import sys

import pytest

pytest.importorskip("vllm")

AHEAD = "ghostserve.vllm.ahead"


def test_spawned_processes_import_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, AHEAD, raising=False)
    runpy.run_module("ghostserve.vllm.launch", run_name="__mp_main__")
    assert {AHEAD, "ghostserve.vllm.process"} <= set(sys.modules)
    assert gc.isenabled()


def test_whoever_imports_it_under_its_own_name_imports_nothing_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, AHEAD, raising=False)
    runpy.run_module("ghostserve.vllm.launch", run_name="ghostserve.vllm.launch")
    assert AHEAD not in sys.modules
