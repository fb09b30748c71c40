"""Two ranks of vLLM on one GPU: one is killed in decode, and the tokens and logprobs are those of an undisturbed run.

Needs vLLM for CUDA, and NCCL >= 2.30 for several ranks on one GPU (VLLM_NCCL_SO_PATH, LD_PRELOAD).
"""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

pytest.importorskip("vllm")

from gpu_engine import ENVIRONMENT, Drawn, GpuEngine, eight_b, prompts

from ghostserve.vllm.rerun import rerun

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.timeout(900, method="thread"),  # the engine's driver has the alarm
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"),
]
REQUESTS = [(prompt, 24 + 3 * i) for i, prompt in enumerate(prompts((24, 100, 300, 61)))]


@pytest.fixture(scope="module", autouse=True)
def environment() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in ENVIRONMENT.items():
            patch.setenv(name, os.environ.get(name, value))
        yield


@pytest.fixture(scope="module")
def undisturbed(llama: Path) -> Drawn:
    with GpuEngine(llama, parity="none", standbys=0) as engine:
        return engine.run(REQUESTS)


@pytest.mark.parametrize("asynchronous", [False, True], ids=["sync", "async"])
@pytest.mark.parametrize("kills", [{9: 1}, {9: 0}, {2: 1}, {6: 1, 20: 0}], ids=str)
def test_nobody_notices(
    llama: Path, undisturbed: Drawn, tmp_path: Path, kills: dict[int, int], asynchronous: bool
) -> None:
    with GpuEngine(llama, tmp_path / "schedule", asynchronous=asynchronous) as engine:
        drawn = engine.run(REQUESTS, kills)
        recoveries = engine.status().recoveries
        for recovery in recoveries:
            print(recovery)
    assert len(recoveries) == len(kills)
    if min(kills) > 2:  # in the second step nothing may be committed yet: all of it is replayed
        assert all(recovery.bytes_rebuilt > 0 for recovery in recoveries)
    assert all(recovery.recomputed_requests == 0 for recovery in recoveries)
    assert rerun(tmp_path / "schedule").differences == ()
    if not asynchronous:  # the same batches in every run
        assert drawn == undisturbed


def test_without_the_rebuild_it_would_be_noticed(llama: Path, tmp_path: Path) -> None:
    with GpuEngine(llama, tmp_path / "schedule", skip_rebuild=True) as engine:
        engine.run(REQUESTS, {9: 1})
    assert rerun(tmp_path / "schedule").differences


@pytest.mark.slow
def test_a_model_of_8b(tmp_path: Path) -> None:
    """Prints where the recovery's time goes."""
    model = eight_b(tmp_path / "model")
    requests = [(prompt, 40) for prompt in prompts((700, 500, 64, 301))]
    with GpuEngine(model, tmp_path / "schedule", dummy=True, cache_bytes=2 << 30) as engine:
        engine.run(requests, {20: 1})
        (recovery,) = engine.status().recoveries
        print(recovery)
    assert rerun(tmp_path / "schedule").differences == ()
