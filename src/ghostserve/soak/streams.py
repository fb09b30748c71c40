"""What a client asks, and what it has received and when."""

import itertools
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

__all__ = ["Ask", "Stream", "draw_asks", "longest_wait"]

_TOKENS = (24, 48)
_SHORT = (8, 60)
_IDS = (3, 250)  # any model has these


@dataclass(frozen=True)
class Ask:
    """A completion to ask for, and how long after the others (seconds)."""

    prompt: tuple[int, ...]
    max_tokens: int
    temperature: float
    seed: int | None
    after: float


@dataclass
class Stream:
    """One client: its token ids with their logprobs (None: not a number), and monotonic times."""

    ask: Ask
    asked: float | None = None
    request_id: str = ""
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float | None] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    over: bool = False
    error: str | None = None

    @property
    def running(self) -> bool:
        return self.asked is not None and not self.over


def draw_asks(seed: int, clients: int, *, context: int, long: bool, seeded: bool) -> list[Ask]:
    """What `clients` ask of a model with `context` tokens: half of them greedy, and `long` prompts where told.

    `seeded`: sampled requests bring a seed of their own.
    """
    rng = random.Random(seed)
    most = min(400, context - _TOKENS[1] - 1)
    asks = []
    for client in range(clients):
        longer = long and client % 2 == 0
        length = min(most, rng.randint(*((most // 2, most) if longer else _SHORT)))
        prompt = tuple(rng.randint(*_IDS) for _ in range(length))
        sampled = rng.random() < 0.5
        asks.append(
            Ask(
                prompt=prompt,
                max_tokens=rng.randint(*_TOKENS),
                temperature=0.8 if sampled else 0.0,
                seed=rng.getrandbits(31) if sampled and seeded else None,
                after=rng.uniform(0.0, 0.05),
            )
        )
    return asks


def longest_wait(streams: Iterable[Stream], first: float, last: float) -> float | None:
    """The longest time that a client waited for a token while something was struck between two moments.

    None if nobody was waiting then. Waits that were over before, or began later, are not counted.
    """
    waits = [
        later - earlier for stream in streams for earlier, later in _waits(stream) if later > first and earlier < last
    ]
    return max(waits, default=None)


def _waits(stream: Stream) -> Sequence[tuple[float, float]]:
    if stream.asked is None:
        return ()
    moments = [stream.asked, *stream.times]
    return list(itertools.pairwise(moments))
