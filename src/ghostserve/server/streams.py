"""Async generators: closing, merging, and giving up on them when the client goes away."""

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine, Iterable, Sequence
from contextlib import aclosing
from typing import Any, TypeVar, cast

from starlette.requests import ClientDisconnect
from starlette.types import Receive

__all__ = ["closing", "merge", "unless_disconnected"]

logger = logging.getLogger(__name__)

T = TypeVar("T")


def closing(stream: AsyncIterator[T]) -> aclosing[AsyncGenerator[T, None]]:
    """`aclosing` for a generator that is typed as an iterator."""
    return aclosing(cast("AsyncGenerator[T, None]", stream))


async def merge(
    streams: Sequence[AsyncGenerator[T, None]], idle_seconds: float | None = None
) -> AsyncGenerator[T | None, None]:
    """Items of all streams as they come, and None whenever nothing came for `idle_seconds`.

    All streams are closed when this ends: when they are exhausted, one fails or the consumer stops.
    """
    waiting = {_next(stream): stream for stream in streams}
    try:
        while waiting:
            done, _ = await asyncio.wait(waiting, timeout=idle_seconds, return_when=asyncio.FIRST_COMPLETED)
            if not done:
                yield None
            for task in done:
                stream = waiting.pop(task)
                try:
                    item = task.result()
                except StopAsyncIteration:
                    continue
                waiting[_next(stream)] = stream
                yield item
    finally:
        await _cancel(waiting)
        for stream in streams:
            await stream.aclose()


async def unless_disconnected(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`; cancels it and raises ClientDisconnect when the client goes away first."""
    task = asyncio.create_task(work)
    watcher = asyncio.create_task(_disconnected(receive))
    try:
        await asyncio.wait((task, watcher), return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise ClientDisconnect
    finally:
        await _cancel((task, watcher))


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _next(stream: AsyncGenerator[T, None]) -> asyncio.Task[T]:
    async def pull() -> T:
        return await anext(stream)

    return asyncio.create_task(pull())


async def _cancel(tasks: Iterable[asyncio.Task[Any]]) -> None:
    """Cancel and wait until all are over, so that their clean-up has run."""
    running = []
    for task in tasks:
        if not task.done():
            running.append(task)
        elif not task.cancelled():
            task.exception()  # several may fail at once: the first one's error is the one that is raised
    for task in running:
        task.cancel()
    for result in await asyncio.gather(*running, return_exceptions=True):
        if isinstance(result, Exception) and not isinstance(result, StopAsyncIteration):
            logger.error("a cancelled stream failed while it was closed", exc_info=result)
