"""The work that the engine's benchmarks run: chat-sized streams on the demo's model, timed as a client sees them."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise

from ghostserve.engine.config import EngineConfig
from ghostserve.engine.engine import Engine
from ghostserve.errors import GhostServeError
from ghostserve.sampling import SamplingParams

__all__ = ["Stream", "await_standbys", "bench_config", "run_streams", "seconds_until_next"]


@dataclass
class Stream:
    """What one client got: token ids and when each came (monotonic seconds)."""

    tokens: list[int] = field(default_factory=list)
    times: list[float] = field(default_factory=list)


def bench_config(
    model: str,
    tensor_parallel_size: int,
    parity: str,
    *,
    standbys: int = 1,
    device: str = "cpu",
    kv_cache_memory: int = 256 << 20,
    max_model_len: int | None = None,
    max_num_seqs: int = 16,
    max_num_batched_tokens: int = 256,
    dtype: str = "auto",
) -> EngineConfig:
    """The same settings for every variant but for what is compared."""
    return EngineConfig(
        model=model,
        tensor_parallel_size=tensor_parallel_size,
        parity=parity,
        standbys=standbys,
        device=device,
        kv_cache_memory=kv_cache_memory,
        max_model_len=max_model_len,
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=max_num_batched_tokens,
        dtype=dtype,
    )


def run_streams(
    engine: Engine,
    *,
    count: int,
    prompt_tokens: int,
    max_tokens: int,
    name: str,
    on_token: Callable[[list[Stream]], None] = lambda streams: None,
) -> list[Stream]:
    """Run `count` greedy streams at once to their end; `on_token` sees all of them after every token."""
    streams = [Stream() for _ in range(count)]
    params = SamplingParams(temperature=0.0, max_tokens=max_tokens, ignore_eos=True)
    vocab = engine.spec.vocab_size

    async def one(index: int) -> None:
        # Any token ids do: what a benchmark needs of a prompt is its length. All start alike in every run.
        prompt = [(index * 7919 + position * 104729) % vocab for position in range(prompt_tokens)]
        async for output in engine.generate(f"{name}-{index}", prompt, params):
            streams[index].tokens.append(output.token_id)
            streams[index].times.append(time.monotonic())
            on_token(streams)

    async def everyone() -> None:
        await asyncio.gather(*(one(index) for index in range(count)))

    asyncio.run(everyone())
    return streams


def await_standbys(engine: Engine, count: int, timeout: float = 120.0) -> None:
    """A start takes the processor from whatever is measured meanwhile. Raises `GhostServeError` after `timeout`."""
    deadline = time.monotonic() + timeout
    while sum(s.state == "ready" for s in engine.status().standbys) < count:
        if time.monotonic() > deadline:
            raise GhostServeError(f"no {count} standbys were ready within {timeout:.0f} s")
        time.sleep(0.05)


def seconds_until_next(streams: list[Stream], killed_at: float) -> float:
    """From a kill until every stream had its next token.

    A token that was drawn before the kill can arrive just after it: the pause is the longest gap that ends later.
    """
    return max(_longest_gap_after(stream, killed_at)[1] for stream in streams) - killed_at


def _longest_gap_after(stream: Stream, moment: float) -> tuple[float, float]:
    gaps = [(a, b) for a, b in pairwise(stream.times) if b > moment]
    return max(gaps, key=lambda gap: gap[1] - gap[0])
