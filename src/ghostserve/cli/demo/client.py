"""One chat client: streams a completion over HTTP and keeps all that it receives."""

import json
import time
from typing import Any

import httpx

from ghostserve.cli.demo.story import Stream
from ghostserve.errors import GhostServeError

__all__ = ["stream_chat"]

_READ_SECONDS = 300.0  # a recovery is a pause, not a failure


async def stream_chat(
    http: httpx.AsyncClient, model: str, messages: list[dict[str, str]], max_tokens: int, stream: Stream
) -> None:
    """Ask, and append to `stream` what comes. Raises `GhostServeError` if the server refuses or ends early."""
    plan = stream.plan
    body = {
        "model": model,
        "messages": messages,
        "stream": True,
        "max_completion_tokens": max_tokens,
        "ignore_eos": True,
        "temperature": plan.temperature,
        "top_p": plan.top_p,
        "top_k": plan.top_k,
        "seed": plan.seed,
        "logprobs": True,
        "top_logprobs": 2,
        "return_token_ids": True,
    }
    async with http.stream("POST", "/v1/chat/completions", json=body, timeout=_READ_SECONDS) as response:
        if response.status_code != 200:
            raise GhostServeError(f"the server refused stream {plan.name!r}: {(await response.aread()).decode()}")
        async for line in response.aiter_lines():
            if line.startswith("data: ") and line != "data: [DONE]":
                _take(json.loads(line.removeprefix("data: ")), stream)
    if stream.finish_reason is None:
        raise GhostServeError(f"stream {plan.name!r} ended after {len(stream.token_ids)} tokens, without a reason")


def _take(chunk: dict[str, Any], stream: Stream) -> None:
    if "error" in chunk:
        raise GhostServeError(f"stream {stream.plan.name!r} failed: {chunk['error']['message']}")
    stream.request_id = chunk["id"]
    stream.prompt_tokens = stream.prompt_tokens or len(chunk.get("prompt_token_ids") or ())
    for choice in chunk["choices"]:
        stream.text += choice["delta"].get("content") or ""
        tokens = choice.get("token_ids") or []
        stream.token_ids += tokens
        stream.times += [time.monotonic()] * len(tokens)
        stream.logprobs += [entry["logprob"] for entry in (choice.get("logprobs") or {}).get("content", ())]
        stream.finish_reason = choice.get("finish_reason") or stream.finish_reason
