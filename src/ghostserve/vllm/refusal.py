"""What a feature that can't be protected is refused with, and how it is recognised."""

from collections.abc import Callable
from typing import Any, NamedTuple

__all__ = ["Refusal", "Rule"]


class Refusal(NamedTuple):
    """A feature in use that a recovery could not bring back, and why.

    `can_serve_unprotected`: with `allow_unprotected` it is served as stock vLLM does, and ends when a worker dies.
    """

    feature: str
    reason: str
    can_serve_unprotected: bool = True


class Rule(NamedTuple):
    """`applies` to a `VllmConfig` that uses the feature."""

    refusal: Refusal
    applies: Callable[[Any], bool]
