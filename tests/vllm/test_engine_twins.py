"""The proof that the checks can fail: a newcomer that keeps its poisoned KV is found out, and so is a single bit."""

import copy
import random
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("vllm")

from models import VOCABULARY
from oracle import assert_undisturbed
from stepped import SteppedEngine

from ghostserve.vllm.record import read
from ghostserve.vllm.rerun import rerun, same

pytestmark = pytest.mark.vllm


@pytest.fixture(scope="module")
def sabotaged(llama: Path, tmp_path_factory: pytest.TempPathFactory, vllm_environment: None) -> Path:
    """The record of an engine whose newcomer's KV was not rebuilt."""
    engine = SteppedEngine(llama, tmp_path_factory.mktemp("engine"), asynchronous=False, skip_rebuild=True)
    source = random.Random(1)
    for _ in range(4):
        engine.add([source.randrange(2, VOCABULARY) for _ in range(60)], max_tokens=24)
    engine.run(kills={8: 1})
    engine.close()
    return engine.record


def test_without_a_rebuild_tokens_differ(sabotaged: Path) -> None:
    report = rerun(sabotaged)
    assert {difference.request_id[:2] for difference in report.differences} == {"r1", "r2", "r3", "r4"}
    assert {difference.what for difference in report.differences} >= {"tokens", "logprobs"}
    # Until the death all was right.
    assert min(difference.step for difference in report.differences) >= 6
    with pytest.raises(AssertionError):
        assert_undisturbed(sabotaged)


def test_one_bit_is_a_difference(sabotaged: Path) -> None:
    output = next(step.output for step in read(sabotaged) if step.output is not None and step.output.logprobs)
    other = copy.deepcopy(output)
    assert same(output.logprobs.logprobs, other.logprobs.logprobs)
    values = np.array(other.logprobs.logprobs)
    values[0, 0] = np.nextafter(values[0, 0], np.float32(0))
    assert not same(output.logprobs.logprobs, values)
    assert not same(output.sampled_token_ids, [[tokens[0] + 1] for tokens in output.sampled_token_ids])
