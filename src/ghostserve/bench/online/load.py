"""What the client sends: Poisson arrivals or those of a trace, scaled."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ghostserve.errors import ConfigError
from ghostserve.traces import Arrival, poisson, read_trace

__all__ = ["PROMPTS", "Load", "prompt_tokens"]

PROMPTS = {"short": (16, 64), "medium": (64, 192), "long": (1000, 3000)}
"""Kinds of prompts, (least, most) tokens: chat turns; a page; documents, code or the history of an agent."""


@dataclass(frozen=True, kw_only=True)
class Load:
    """`rate` requests a second, None: not decided yet. Lengths are (least, most) tokens, those of a trace its own."""

    requests: int
    prompt: tuple[int, int]
    output: tuple[int, int]
    rate: float | None = None
    trace: Path | None = None
    scale_rate: float = 1.0
    scale_length: float = 1.0
    seed: int = 0

    def arrivals(self, rate: float) -> list[Arrival]:
        """In the order of their times, the first at 0 s; the same for the same settings.

        A trace keeps its own times but for `scale_rate`; `rate` is that of Poisson arrivals before `scale_rate`.
        Raises `ConfigError` for settings out of range and for a file that is no trace.
        """
        if self.requests < 1:
            raise ConfigError(f"requests must be at least 1, not {self.requests}")
        for name, value in (("scale_rate", self.scale_rate), ("scale_length", self.scale_length)):
            if not 0 < value < float("inf"):
                raise ConfigError(f"{name} must be a number above 0, not {value}")
        if self.trace is not None:
            return read_trace(
                self.trace, limit=self.requests, scale_lengths=self.scale_length, scale_rate=self.scale_rate
            )
        prompt, output = self._scaled(self.prompt), self._scaled(self.output)
        found = poisson(rate * self.scale_rate, self.requests, prompt=prompt, output=output, seed=self.seed)
        first = found[0].at_seconds
        return [Arrival(a.at_seconds - first, a.prompt_tokens, a.output_tokens) for a in found]

    def _scaled(self, least_most: Sequence[int]) -> tuple[int, int]:
        least, most = (max(1, round(tokens * self.scale_length)) for tokens in least_most)
        return least, most


def prompt_tokens(request: int, length: int, vocabulary: int) -> list[int]:
    """The prompt of a request: any ids do, what counts is the length; no two requests share a prefix."""
    return [(request * 7919 + position * 104729) % vocabulary for position in range(length)]
