"""HTTP as the soak speaks it: streaming completions, and looking at the server."""

import asyncio
import json
import time
from types import TracebackType
from typing import Any

import httpx
import msgspec

from ghostserve.errors import GhostServeError
from ghostserve.soak.streams import Ask, Stream
from ghostserve.status import EngineStatus

__all__ = ["Client"]

_READ_SECONDS = 180.0  # a recovery is a pause, not a failure
_LOOK_SECONDS = 30.0


class Client:
    """Everything that is asked of one server; an async context manager. Each request has a connection of its own."""

    def __init__(self, url: str, model: str) -> None:
        self._model = model
        self._http = httpx.AsyncClient(
            base_url=url,
            trust_env=False,
            headers={"Connection": "close"},  # so that what stays open on the server is no client's
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=0),
            timeout=_LOOK_SECONDS,
        )

    async def __aenter__(self) -> "Client":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._http.aclose()

    async def status(self) -> EngineStatus:
        """Raises `GhostServeError` where the server does not answer as it should."""
        answer = await self._get("/v1/fault_tolerance/status")
        if answer.status_code != 200:
            raise GhostServeError(f"the status page answers {answer.status_code}: {answer.text}")
        return msgspec.json.decode(answer.content, type=EngineStatus)

    async def recovering(self) -> bool:
        """Whether the server says that it is not ready."""
        return (await self._get("/ready")).status_code != 200

    async def context(self) -> int:
        """Tokens of the model's context."""
        return int((await self._get("/v1/models")).json()["data"][0]["max_model_len"])

    async def stream(self, stream: Stream) -> None:
        """Ask what it wants and keep what comes; whatever goes wrong is its `error`."""
        await asyncio.sleep(stream.ask.after)
        stream.asked = time.monotonic()
        try:
            await self._run(stream)
            if stream.error is None and len(stream.token_ids) != stream.ask.max_tokens:
                stream.error = f"ended after {len(stream.token_ids)} of {stream.ask.max_tokens} tokens"
        except (httpx.HTTPError, json.JSONDecodeError) as error:
            stream.error = f"{type(error).__name__}: {error}"
        finally:
            stream.over = True

    async def _run(self, stream: Stream) -> None:
        body = self._body(stream.ask)
        async with self._http.stream("POST", "/v1/completions", json=body, timeout=_READ_SECONDS) as answer:
            if answer.status_code != 200:
                stream.error = f"refused with {answer.status_code}: {(await answer.aread()).decode()}"
                return
            async for line in answer.aiter_lines():
                if line.startswith("data: ") and line != "data: [DONE]":
                    _take(json.loads(line.removeprefix("data: ")), stream)

    def _body(self, ask: Ask) -> dict[str, Any]:
        body: dict[str, Any] = {
            "model": self._model,
            "prompt": list(ask.prompt),
            "stream": True,
            "max_tokens": ask.max_tokens,
            "ignore_eos": True,
            "temperature": ask.temperature,
            "top_p": 0.9 if ask.temperature else 1.0,
            "logprobs": 2,
            "return_token_ids": True,
        }
        return body | ({"seed": ask.seed} if ask.seed is not None else {})

    async def _get(self, path: str) -> httpx.Response:
        try:
            return await self._http.get(path)
        except httpx.HTTPError as error:
            raise GhostServeError(f"the server does not answer on {path}: {type(error).__name__}: {error}") from error


def _take(chunk: dict[str, Any], stream: Stream) -> None:
    if "error" in chunk:
        stream.error = f"failed: {chunk['error']['message']}"
        return
    stream.request_id = chunk["id"]
    for choice in chunk["choices"]:
        tokens = choice.get("token_ids") or []
        stream.token_ids += tokens
        stream.times += [time.monotonic()] * len(tokens)
        stream.logprobs += (choice.get("logprobs") or {}).get("token_logprobs", [])
