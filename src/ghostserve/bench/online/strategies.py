"""What is compared: the strategies of `--protect`, parity once with each way of bringing KV back."""

from collections.abc import Mapping

import msgspec

from ghostserve.engine.config import EngineConfig
from ghostserve.errors import ConfigError

__all__ = ["BASE", "STRATEGIES", "check_strategy", "configure"]

BASE = "none"
"""What the others are compared with."""
STRATEGIES: Mapping[str, Mapping[str, str]] = {
    BASE: {"protect": "none", "parity": "none", "recovery": "recompute"},
    "replicate-host": {"protect": "replicate-host", "parity": "none", "recovery": "rebuild"},
    "replicate-ssd": {"protect": "replicate-ssd", "parity": "none", "recovery": "rebuild"},
    "parity-rebuild": {"protect": "parity", "recovery": "rebuild"},
    "parity-hybrid": {"protect": "parity", "recovery": "hybrid"},
}


def check_strategy(name: str) -> None:
    """Raise `ConfigError` for any other name."""
    if name not in STRATEGIES:
        raise ConfigError(f"strategy {name!r} is unknown; allowed: {', '.join(STRATEGIES)}")


def configure(config: EngineConfig, strategy: str) -> EngineConfig:
    """`config` under `strategy`; the code is `config.parity` where there is one. Raises `ConfigError`."""
    check_strategy(strategy)
    return msgspec.structs.replace(config, **STRATEGIES[strategy])
