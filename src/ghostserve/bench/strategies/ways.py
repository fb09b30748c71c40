"""The ways that are compared: what is kept of the KV cache, and how what was lost comes back."""

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from ghostserve.engine.config import EngineConfig
from ghostserve.errors import ConfigError
from ghostserve.recovery.hybrid import Policy

__all__ = ["BASE", "Way", "ways_of", "with_base"]


@dataclass(frozen=True)
class Way:
    """Settings of an engine that differ from way to way; `name` is shown."""

    name: str
    protect: str
    parity: str = "none"
    recovery: Policy = "rebuild"

    def settings(self, config: EngineConfig, *, standbys: int) -> EngineConfig:
        """`config` with this way's strategy."""
        return msgspec.structs.replace(
            config, protect=self.protect, parity=self.parity, recovery=self.recovery, standbys=standbys
        )


BASE = Way("none", "none")
"""What all others are held against."""


def ways_of(parity: str) -> tuple[Way, ...]:
    """All of them; parity by the code `parity`, once with rebuilds alone and once with hybrid recovery.

    Raises `ConfigError` for parity "none".
    """
    if parity == "none":
        raise ConfigError("parity 'none' is one of the ways already: name the code to hold it against")
    return (
        BASE,
        Way("replicate-host", "replicate-host"),
        Way("replicate-ssd", "replicate-ssd"),
        Way(f"{parity}, rebuild", "parity", parity),
        Way(f"{parity}, hybrid", "parity", parity, "hybrid"),
    )


def with_base(ways: Sequence[Way]) -> tuple[Way, ...]:
    """`ways` in their order, the base first."""
    return (BASE, *(way for way in ways if way != BASE))
