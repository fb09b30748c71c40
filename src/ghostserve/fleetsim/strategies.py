"""What each strategy restores after a failure, and how fast."""

from ghostserve.errors import ConfigError
from ghostserve.fleetsim.constants import Constants
from ghostserve.fleetsim.queue import Restore

__all__ = ["STRATEGIES", "restore_of"]

STRATEGIES = ("none", "replicate-host", "replicate-ssd", "parity:1", "parity:2", "hybrid:1", "hybrid:2")


def restore_of(strategy: str, constants: Constants) -> Restore:
    """`NAME` or `NAME:K`. Raises `ConfigError` for what is no strategy."""
    name, _, k = strategy.partition(":")
    if strategy not in STRATEGIES and not (name in ("parity", "hybrid") and k.isdecimal() and int(k) >= 1):
        raise ConfigError(f"strategy {strategy!r} is unknown; allowed: {', '.join(STRATEGIES)} (any K)")
    shard = constants.kv_bytes_per_token / constants.ranks
    if name == "none":
        return Restore(covered=0, seconds_per_token=0.0)
    if name == "replicate-host":
        return Restore(covered=constants.ranks, seconds_per_token=shard / constants.host_copy_bytes_per_s)
    if name == "replicate-ssd":
        return Restore(covered=constants.ranks, seconds_per_token=shard / constants.ssd_bytes_per_s)
    seconds = shard / constants.rebuild_bytes_per_s
    if name == "hybrid":
        seconds = 1 / (1 / seconds + constants.prefill_tokens_per_s)
    return Restore(covered=int(k), seconds_per_token=seconds)
