"""Ways to keep a KV cache safe, behind one contract."""

from ghostserve.errors import ConfigError
from ghostserve.protect.base import Kept, Strategy
from ghostserve.protect.none import Unprotected
from ghostserve.protect.parity import Parity
from ghostserve.protect.replicate_host import ReplicateHost
from ghostserve.protect.replicate_ssd import ReplicateSsd

__all__ = ["STRATEGIES", "Kept", "Parity", "ReplicateHost", "ReplicateSsd", "Strategy", "Unprotected", "make_strategy"]

STRATEGIES: dict[str, type[Strategy]] = {
    strategy.name: strategy for strategy in (Parity, Unprotected, ReplicateHost, ReplicateSsd)
}


def make_strategy(protect: str, parity: str) -> Strategy:
    """The strategy that the settings name; `parity` "none" means the same as `protect` "none".

    Raises `ConfigError` with the value and what is allowed for any other name.
    """
    if protect not in STRATEGIES:
        raise ConfigError(f"protect {protect!r} is unknown; allowed: {', '.join(STRATEGIES)}")
    if protect == Parity.name and parity == "none":
        return Unprotected(parity)
    return STRATEGIES[protect](parity)
