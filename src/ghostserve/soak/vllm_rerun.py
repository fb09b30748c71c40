"""The undisturbed rerun of a vLLM schedule, as a process: `python -m ghostserve.soak.vllm_rerun RECORD RESULT`."""

import math
import sys
from collections.abc import Iterable
from pathlib import Path

import msgspec

from ghostserve.soak.server import Comparison, Drawn
from ghostserve.vllm.record import Step, read
from ghostserve.vllm.rerun import Difference, rerun

__all__ = ["delivered", "main"]


def main(record: Path, result: Path) -> None:
    """Run `record` again, and write the `Comparison` to `result` as msgpack."""
    report = rerun(record)
    first = _describe(report.differences[0]) if report.differences else None
    comparison = Comparison(report.tokens, len(report.differences), first, delivered(read(record)), None)
    result.write_bytes(msgspec.msgpack.encode(comparison))


def delivered(steps: Iterable[Step]) -> dict[str, list[Drawn]]:
    """Request -> the tokens that were recorded for it, in order. vLLM puts two suffixes on a request's name."""
    found: dict[str, list[Drawn]] = {}
    for output in (step.output for step in steps if step.output is not None):
        for index, name in enumerate(output.req_ids if output.sampled_token_ids else ()):
            drawn = found.setdefault("-".join(name.split("-")[:2]), [])
            for token in output.sampled_token_ids[index]:
                logprob = None if output.logprobs is None else float(output.logprobs.logprobs[index][0])
                drawn.append((int(token), None if logprob is None or math.isnan(logprob) else logprob))
    return {name: drawn for name, drawn in found.items() if drawn}


def _describe(difference: Difference) -> str:
    return f"request {difference.request_id}, step {difference.step}: other {difference.what}"


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
