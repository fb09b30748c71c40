"""What must be equal: what clients got and what was recorded; what was recorded and what nobody disturbed."""

import math
from collections.abc import Iterable
from pathlib import Path

from streams import Drawn, Stream

from ghostserve.vllm.record import Step, read
from ghostserve.vllm.rerun import Report, rerun

__all__ = ["assert_delivered", "assert_undisturbed", "recorded", "recorded_tokens"]


def recorded(steps: Iterable[Step], request_id: str) -> list[Drawn]:
    """The tokens of a request, in order, with as many logprobs as the batch had. vLLM puts a suffix on the name."""
    drawn = []
    for step in (step for step in steps if step.output is not None):
        for index, name in enumerate(step.output.req_ids if step.output.sampled_token_ids else ()):
            if not name.startswith(request_id):
                continue
            for token in step.output.sampled_token_ids[index]:
                ids, values = [token], [math.nan]
                if step.output.logprobs is not None:
                    ids = step.output.logprobs.logprob_token_ids[index].tolist()
                    values = step.output.logprobs.logprobs[index].tolist()
                assert ids[0] == token
                drawn.append(Drawn(token, values[0], dict(zip(ids, values, strict=True))))
    return drawn


def recorded_tokens(record: Path, request_id: str) -> list[int]:
    return [drawn.token for drawn in recorded(read(record), request_id)]


def assert_delivered(record: Path, streams: Iterable[Stream]) -> None:
    """Each client has what was recorded for it, once and in order, with the same logprobs to the bit."""
    steps = read(record)
    for stream in streams:
        name, expected = stream.request_id, recorded(steps, stream.request_id)
        if stream.hung_up:
            assert len(expected) >= len(stream.drawn)
            expected = expected[: len(stream.drawn)]
        assert [d.token for d in stream.drawn] == [d.token for d in expected], name
        assert [d.logprob for d in stream.drawn] == [d.logprob for d in expected], name
        # A client that wants two logprobs may share a batch with one that wants five.
        tops = [{token: d.top.get(token) for token in got.top} for got, d in zip(stream.drawn, expected, strict=True)]
        assert [d.top for d in stream.drawn] == tops, name


def assert_undisturbed(record: Path) -> Report:
    """The oracle: every token and logprob is what workers that nobody struck draw from the same schedule."""
    report = rerun(record)
    assert report.differences == ()
    assert report.tokens > 0
    return report
