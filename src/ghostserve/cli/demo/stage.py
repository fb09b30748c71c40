"""Engine, HTTP server, clients and killer in one process: everything of the demo that streams."""

import asyncio

import httpx

from ghostserve.cli.demo.client import stream_chat
from ghostserve.cli.demo.display import Display
from ghostserve.cli.demo.killer import kill_twice
from ghostserve.cli.demo.prompts import chat_messages
from ghostserve.cli.demo.settings import DemoSettings
from ghostserve.cli.demo.story import Story
from ghostserve.engine.engine import Engine
from ghostserve.server import bind, create_app, serve

__all__ = ["perform"]

_TICK = 0.1
_TEMPLATE_ROOM = 64  # tokens that a chat template may add around a message


async def perform(engine: Engine, story: Story, settings: DemoSettings, display: Display) -> None:
    """Serve, stream, kill, recover; returns when every stream has ended. The engine has been started."""
    stop = asyncio.Event()
    address: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    def ready(host: str, port: int) -> None:
        address.set_result(f"http://{host}:{port}")

    server = asyncio.create_task(
        serve(create_app(engine), listener=bind(port=0), on_ready=ready, stop=stop, drain_seconds=1)
    )
    ticker = asyncio.create_task(_tick(engine, story, display))
    show = asyncio.create_task(_show(engine, story, settings, address))
    try:
        await asyncio.wait((server, show), return_when=asyncio.FIRST_COMPLETED)
        if not show.done():  # a signal has stopped the server
            raise KeyboardInterrupt
        await show
    finally:
        stop.set()
        for task in (show, ticker):
            task.cancel()
        await asyncio.gather(server, show, ticker, return_exceptions=True)


async def _show(engine: Engine, story: Story, settings: DemoSettings, address: asyncio.Future[str]) -> None:
    most = settings.max_tokens
    longest = min(settings.longest_prompt, engine.max_model_len - most - _TEMPLATE_ROOM)
    chats = [chat_messages(s.plan, longest, lambda text: len(engine.tokenizer.encode(text))) for s in story.streams]
    async with httpx.AsyncClient(base_url=await address, trust_env=False) as http:
        try:
            async with asyncio.TaskGroup() as tasks:
                for stream, messages in zip(story.streams, chats, strict=True):
                    tasks.create_task(stream_chat(http, engine.model_name, messages, most, stream))
                tasks.create_task(kill_twice(engine, story, most))
        except ExceptionGroup as failed:
            raise failed.exceptions[0] from failed


async def _tick(engine: Engine, story: Story, display: Display) -> None:
    while True:
        story.status = engine.status()
        display.tick(story)
        await asyncio.sleep(_TICK)
