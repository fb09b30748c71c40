"""Reads a published trace: Azure LLM inference (CSV) or Mooncake (JSON lines)."""

import math
from collections.abc import Iterator
from pathlib import Path

from ghostserve.errors import ConfigError
from ghostserve.traces.arrivals import Arrival
from ghostserve.traces.formats import AZURE, FORMATS, MOONCAKE, Format

__all__ = ["MAX_FILE_BYTES", "MAX_LENGTH_TOKENS", "MAX_LINE_BYTES", "read_trace"]

MAX_FILE_BYTES = 1 << 30
MAX_LINE_BYTES = 1 << 20  # Mooncake lists the hash of each block of the prompt
MAX_LENGTH_TOKENS = 1 << 30


def read_trace(
    path: Path,
    *,
    limit: int | None = None,
    scale_lengths: float = 1.0,
    scale_rate: float = 1.0,
    max_tokens: int | None = None,
) -> list[Arrival]:
    """The arrivals of a trace in the order of their times, the first at 0 seconds.

    The format is known by the suffix (.csv Azure, .jsonl Mooncake), else by the first line. `limit`: only the first
    so many requests of the file. `scale_lengths` multiplies both lengths (rounded, at least 1 token); `scale_rate` 2
    lets them come twice as fast. `max_tokens`: prompt and output together; an output longer than half of it is cut to
    that half, then the prompt to what is left.
    Raises `ConfigError` with file, line and what is allowed for a bad line, a file or line that is too long, a file
    of no known format or without requests, and settings out of range.
    """
    if limit is not None and limit < 1:
        raise ConfigError(f"limit must be at least 1, not {limit}")
    for name, scale in (("scale_lengths", scale_lengths), ("scale_rate", scale_rate)):
        if not (math.isfinite(scale) and scale > 0):
            raise ConfigError(f"{name} must be a number above 0, not {scale}")
    if max_tokens is not None and max_tokens < 2:
        raise ConfigError(f"max_tokens must be at least 2 (a prompt and an output), not {max_tokens}")
    found = []
    kind: Format | None = None
    for number, line in _lines(path):
        kind = kind or _format(path, line)
        if line == kind.header or not line:
            continue
        at, prompt, output = _parse(kind, line, f"{path}:{number}")
        found.append((at, _scaled(prompt, scale_lengths), _scaled(output, scale_lengths)))
        if len(found) == limit:
            break
    if not found:
        raise ConfigError(f"{path}: no requests in it; allowed: {_known()}")
    found.sort(key=lambda one: one[0])
    first = found[0][0]
    return [Arrival((at - first) / scale_rate, *_cut(prompt, output, max_tokens)) for at, prompt, output in found]


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    try:
        size = path.stat().st_size
        if size > MAX_FILE_BYTES:
            raise ConfigError(f"{path}: {size} bytes; a trace may have {MAX_FILE_BYTES}")
        with path.open("rb") as file:
            number = 0
            while raw := file.readline(MAX_LINE_BYTES + 1):
                number += 1
                if len(raw) > MAX_LINE_BYTES:
                    raise ConfigError(f"{path}:{number}: a line may have {MAX_LINE_BYTES} bytes, this one has more")
                yield number, raw.decode("utf-8-sig").strip()
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}; a trace is a file that can be read") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}:{number}: not UTF-8 ({error.reason}); allowed: {_known()}") from error


def _format(path: Path, first: str) -> Format:
    for kind in FORMATS:
        if path.suffix.lower() == kind.suffix:
            return kind
    if first == AZURE.header:
        return AZURE
    if first.startswith("{"):
        return MOONCAKE
    raise ConfigError(f"{path}:1: {first[:60]!r} is the start of no known trace; allowed: {_known()}")


def _parse(kind: Format, line: str, where: str) -> tuple[float, int, int]:
    try:
        at, prompt, output = kind.parse(line)
    except (ValueError, OverflowError) as error:
        raise ConfigError(f"{where}: {error}") from error
    if not math.isfinite(at):
        raise ConfigError(f"{where}: time {at}; allowed: a finite number")
    for name, value, least in (("prompt", prompt, 1), ("output", output, 0)):
        if not least <= value <= MAX_LENGTH_TOKENS:
            raise ConfigError(f"{where}: {name} of {value} tokens; allowed: {least} to {MAX_LENGTH_TOKENS}")
    return at, prompt, output


def _scaled(tokens: int, scale: float) -> int:
    return max(1, round(tokens * scale))


def _cut(prompt: int, output: int, most: int | None) -> tuple[int, int]:
    if most is None:
        return prompt, output
    output = min(output, most // 2)
    return min(prompt, most - output), output


def _known() -> str:
    return f"a CSV with the header {AZURE.header}, or Mooncake's JSON lines"
