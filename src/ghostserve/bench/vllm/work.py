"""What an engine is made with, what it is asked to do, and what comes back: sent between the bench and its engines."""

from dataclasses import dataclass, field
from typing import Any

__all__ = ["EngineSettings", "Outcome", "Rerun", "Stream", "Work"]


@dataclass(frozen=True)
class EngineSettings:
    """A vLLM engine. `plugin`: the plug-in's settings; None: stock vLLM, with `worker` as its worker class."""

    model: str
    tensor_parallel_size: int
    plugin: dict[str, Any] | None = None
    worker: str = "auto"
    dtype: str = "bfloat16"
    max_model_len: int = 1024
    batch_tokens: int = 1024
    kv_cache_bytes: int = 256 << 20


@dataclass(frozen=True)
class Work:
    """Greedy streams that all begin in the same step. `kill_at`: SIGKILL of a rank once all have that many tokens."""

    name: str
    streams: int
    prompt: int
    tokens: int
    kill_at: int | None = None

    @property
    def processed(self) -> int:
        """Tokens of prompts and answers."""
        return self.streams * (self.prompt + self.tokens)

    def prompts(self, vocabulary: int, seed: int) -> list[list[int]]:
        """Any token ids do: what a benchmark needs of a prompt is its length. With another seed all are others."""
        return [
            [(seed * 15_485_863 + stream * 7919 + position * 104_729) % vocabulary for position in range(self.prompt)]
            for stream in range(self.streams)
        ]


@dataclass
class Stream:
    """What one client got: token ids and when each came (on the monotonic clock, which all processes share)."""

    tokens: list[int] = field(default_factory=list)
    times: list[float] = field(default_factory=list)


@dataclass
class Outcome:
    """What came of a `Work`. `counts`: each stream's tokens at the kill; `died`: the engine ended before the work."""

    streams: list[Stream]
    began: float
    killed: float = 0.0
    counts: list[int] = field(default_factory=list)
    died: bool = False

    @property
    def tokens(self) -> list[list[int]]:
        return [stream.tokens for stream in self.streams]

    @property
    def seconds(self) -> float:
        """From the moment that all requests may begin until the last token is there."""
        return max(stream.times[-1] for stream in self.streams) - self.began


@dataclass(frozen=True)
class Rerun:
    """Of a recorded schedule on undisturbed workers."""

    tokens: int
    differences: list[str]
