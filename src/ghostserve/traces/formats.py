"""The formats of published traces: one parser a format, each from a line to (seconds on its own clock, prompt, output).

A parser raises `ValueError` with what is allowed; `read_trace` puts the file and the line number before it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

import msgspec

__all__ = ["AZURE", "FORMATS", "MOONCAKE", "Format"]

_HEADER = "TIMESTAMP,ContextTokens,GeneratedTokens"


@dataclass(frozen=True)
class Format:
    """A trace format: `header` is its first line where it has one, `parse` reads any other line."""

    name: str
    suffix: str
    header: str | None
    parse: Callable[[str], tuple[float, int, int]]


class _Mooncake(msgspec.Struct):
    timestamp: int | float
    input_length: int
    output_length: int


_MOONCAKE = msgspec.json.Decoder(_Mooncake)


def _azure(line: str) -> tuple[float, int, int]:
    allowed = f"allowed: {_HEADER} as in 2023-11-16 18:17:03.9799600,4808,10"
    fields = line.split(",")
    if len(fields) != 3:
        raise ValueError(f"{len(fields)} fields instead of 3; {allowed}")
    try:
        at = datetime.fromisoformat(fields[0])
        prompt, output = int(fields[1]), int(fields[2])
    except ValueError as error:
        raise ValueError(f"{error}; {allowed}") from None
    # Without a zone the clock is the same for all lines: any zone will do, as only differences count.
    return (at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp(), prompt, output


def _mooncake(line: str) -> tuple[float, int, int]:
    try:
        record = _MOONCAKE.decode(line)
    except (msgspec.DecodeError, msgspec.ValidationError) as error:
        raise ValueError(
            f'{error}; allowed: {{"timestamp": milliseconds, "input_length": tokens, "output_length": tokens, ...}}'
        ) from None
    return record.timestamp / 1000, record.input_length, record.output_length


AZURE = Format("azure", ".csv", _HEADER, _azure)
MOONCAKE = Format("mooncake", ".jsonl", None, _mooncake)
FORMATS = (AZURE, MOONCAKE)
