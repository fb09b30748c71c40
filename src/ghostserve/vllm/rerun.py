"""The undisturbed run: a recorded schedule on fresh workers, answer against answer, bit by bit."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ghostserve.vllm.config import plugin_config
from ghostserve.vllm.executor import GhostServeExecutor
from ghostserve.vllm.record import Setup, Step, read, read_setup

__all__ = ["Difference", "Report", "rerun", "same"]


@dataclass(frozen=True)
class Difference:
    """Where a request's answer was not the same."""

    step: int
    request_id: str
    what: str


@dataclass(frozen=True)
class Report:
    """`steps` were compared; no differences: the recorded run is what an undisturbed one would have been."""

    steps: int
    tokens: int
    differences: tuple[Difference, ...]


def rerun(path: Path) -> Report:
    """Run the schedule in `path` again. Starts and ends its own workers, with the record's settings but no parity."""
    setup, steps = read_setup(path), read(path)
    differences: list[Difference] = []
    tokens = 0
    with _executor(setup) as executor:
        for number, step in enumerate(steps, 1):
            if step.output is None:
                executor.give_up(step.scheduled)
                continue
            answer = executor.execute_model(step.scheduled)
            if answer is None:
                answer = executor.sample_tokens(step.grammar)
            tokens += sum(map(len, step.output.sampled_token_ids))
            differences += _compare(number, step, answer)
    return Report(len(steps), tokens, tuple(differences))


@contextmanager
def _executor(setup: Setup) -> Iterator[GhostServeExecutor]:
    config = setup.config
    settings = {"parity": "none", "standbys": 0, "device_of_rank": [*plugin_config(config).device_of_rank]}
    config.additional_config = {**config.additional_config, "ghostserve": settings}
    executor = GhostServeExecutor(config)
    try:
        for method, args in setup.calls:
            if method == "initialize_from_config":
                executor.initialize_from_config(*args)
            else:
                executor.collective_rpc(method, args=args)
        yield executor
    finally:
        executor.shutdown()


def _compare(number: int, step: Step, answer: Any) -> Iterator[Difference]:
    assert step.output is not None
    recorded = step.output
    if recorded.req_ids != answer.req_ids:
        yield Difference(number, "", f"the batch was {recorded.req_ids}, undisturbed {answer.req_ids}")
        return
    for index, name in enumerate(recorded.req_ids):
        for what, one, other in _parts(recorded, answer, index, name):
            if not same(one, other):
                yield Difference(number, name, what)


def _parts(recorded: Any, answer: Any, index: int, name: str) -> Iterator[tuple[str, Any, Any]]:
    if recorded.sampled_token_ids:
        yield "tokens", recorded.sampled_token_ids[index], answer.sampled_token_ids[index]
    if recorded.logprobs is not None and index < len(recorded.logprobs.logprobs):
        for field in ("logprob_token_ids", "logprobs"):
            yield field, getattr(recorded.logprobs, field)[index], getattr(answer.logprobs, field)[index]
    yield "prompt logprobs", recorded.prompt_logprobs_dict.get(name), answer.prompt_logprobs_dict.get(name)


def same(one: Any, other: Any) -> bool:
    """Bit by bit: arrays, tensors, and sequences of them."""
    if one is None or other is None:
        return one is other
    if isinstance(one, Sequence) and not isinstance(one, str):
        return len(one) == len(other) and all(same(a, b) for a, b in zip(one, other, strict=True))
    return np.asarray(one).tobytes() == np.asarray(other).tobytes()
