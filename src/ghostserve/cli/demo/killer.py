"""Kills one rank, then another, each at a moment when every stream streams."""

import asyncio
import os
import signal

from ghostserve.cli.demo.story import Story
from ghostserve.engine.engine import Engine

__all__ = ["kill_twice"]

_TURN = 0.02
_TOKENS_BETWEEN = 4  # what every stream must have got, first and after a recovery, before the next kill


async def kill_twice(engine: Engine, story: Story, max_tokens: int) -> None:
    """The middle rank first, rank 0 second. A standby is waited for as long as the streams have tokens to go."""
    for count, rank in enumerate((engine.spec.tensor_parallel_size // 2, 0)):
        latest = max_tokens * (count + 1) // 3
        if not await _moment(engine, story, story.fewest_tokens + _TOKENS_BETWEEN, latest, max_tokens):
            return  # too late: the verdict will say that a kill is missing
        pid = engine.status().ranks[rank].pid
        os.kill(pid, signal.SIGKILL)
        story.killed(rank, pid)
        while story.recoveries[-1].record is None:
            await asyncio.sleep(_TURN)


async def _moment(engine: Engine, story: Story, least: int, latest: int, end: int) -> bool:
    """Wait until all stream and a standby is ready (or the longest stream has `latest` tokens); False: one is over."""
    while story.most_tokens < end:
        status = engine.status()
        standby = any(s.state == "ready" for s in status.standbys) or story.most_tokens >= latest
        if story.fewest_tokens >= least and standby and status.state == "serving":
            return True
        await asyncio.sleep(_TURN)
    return False
