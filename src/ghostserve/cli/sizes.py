"""Sizes in bytes as people write them: `536870912`, `512M`, `4G`, `1.5GiB`."""

import re

from ghostserve.errors import ConfigError

__all__ = ["parse_size", "show_size"]

_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(?:i?B)?", re.IGNORECASE)


def parse_size(text: str) -> int:
    """The number of bytes; the units are powers of 1024. Raises `ConfigError` for what is no size."""
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise ConfigError(f"{text!r} is no size: write bytes, or a number with K, M, G or T such as 512M or 4G")
    number, unit = match[1], _UNITS[match[2].upper()]
    return int(float(number) * unit) if "." in number else int(number) * unit


def show_size(count: float) -> str:
    """A short form with at most one decimal, such as `7.3 MiB`."""
    unit = "B"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if count < 1024:
            break
        count, unit = count / 1024, larger
    return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
