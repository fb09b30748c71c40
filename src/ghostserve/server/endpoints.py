"""The OpenAI endpoints: body in, checked job, answer out."""

import asyncio
import time

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from ghostserve.server.body import RequestT, decode_request, read_body
from ghostserve.server.chat import ChatFormatter, chat_job
from ghostserve.server.completions import CompletionFormatter, completion_job
from ghostserve.server.engine_client import EngineClient
from ghostserve.server.errors import ApiError, describe
from ghostserve.server.job import JobRunner
from ghostserve.server.metrics import RequestMetrics
from ghostserve.server.protocol import ChatCompletionRequest, CompletionRequest, GenerationRequest
from ghostserve.server.responses import ModelCard, ModelList
from ghostserve.server.settings import ServerSettings
from ghostserve.server.token_text import TokenText

__all__ = ["OpenAIEndpoints"]


class OpenAIEndpoints:
    """`/v1/models`, `/v1/completions` and `/v1/chat/completions` over one engine."""

    def __init__(self, engine: EngineClient, settings: ServerSettings, metrics: RequestMetrics) -> None:
        self._engine = engine
        self._settings = settings
        self._runner = JobRunner(engine, settings, metrics)
        self._texts = TokenText(engine.tokenizer)
        self._created = int(time.time())

    async def completions(self, request: Request) -> Response:
        """Continue prompts."""
        body = await self._body(request, CompletionRequest)
        job = await asyncio.to_thread(completion_job, body, self._engine, self._settings)
        return await self._runner.respond(request, CompletionFormatter(job, self._texts))

    async def chat_completions(self, request: Request) -> Response:
        """Answer a conversation."""
        body = await self._body(request, ChatCompletionRequest)
        job = await asyncio.to_thread(chat_job, body, self._engine, self._settings)
        return await self._runner.respond(request, ChatFormatter(job, self._texts))

    async def models(self, request: Request) -> Response:
        """The one model, in a list."""
        return _json(ModelList(data=[self._model_card()]))

    async def model(self, request: Request) -> Response:
        """The one model, by its name."""
        self._check_model(request.path_params["model"])
        return _json(self._model_card())

    async def _body(self, request: Request, kind: type[RequestT]) -> RequestT:
        raw = await read_body(request, self._settings)
        body = await asyncio.to_thread(decode_request, raw, kind, self._settings.max_json_depth)
        self._check(body)
        return body

    def _check(self, body: GenerationRequest) -> None:
        if body.model is not None:
            self._check_model(body.model)
        if body.stream_options is not None and not body.stream:
            raise ApiError("stream_options is allowed only when stream is true", param="stream_options")

    def _check_model(self, model: str) -> None:
        if model != self._engine.model_name:
            raise ApiError(
                f"model is {describe(model)}: this server serves {describe(self._engine.model_name)}",
                param="model",
                status=404,
                code="model_not_found",
            )

    def _model_card(self) -> ModelCard:
        engine = self._engine
        return ModelCard(id=engine.model_name, created=self._created, max_model_len=engine.max_model_len)


def _json(content: object) -> Response:
    return Response(msgspec.json.encode(content), media_type="application/json")
