"""`/openapi.json`: the API's description, made from the structs of its requests and answers."""

from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from ghostserve import __version__
from ghostserve.server.chat_template import ROLES
from ghostserve.server.gate import OPEN_PATHS
from ghostserve.server.protocol import ChatCompletionRequest, CompletionRequest
from ghostserve.server.responses import ChatChoice, CompletionChoice, Envelope, ErrorAnswer, ModelCard, ModelList
from ghostserve.status import EngineStatus

__all__ = ["OpenApiEndpoint", "describe_api"]

STRUCTS = (
    CompletionRequest,
    ChatCompletionRequest,
    Envelope,
    CompletionChoice,
    ChatChoice,
    ModelCard,
    ModelList,
    EngineStatus,
    ErrorAnswer,
)
RANGES: dict[str, dict[str, float]] = {
    "max_tokens": {"minimum": 1},
    "max_completion_tokens": {"minimum": 1},
    "n": {"minimum": 1},
    "seed": {"minimum": 0, "maximum": 2**63 - 1},
    "temperature": {"minimum": 0, "maximum": 2},
    "top_k": {"minimum": -1},
    "top_p": {"exclusiveMinimum": 0, "maximum": 1},
    "logprobs": {"minimum": 0},
    "top_logprobs": {"minimum": 0},
}
"""What is true of every model and every setting."""
REF = "#/components/schemas/{name}"


class OpenApiEndpoint:
    """Serves the description, which is made once."""

    def __init__(self, *, guarded: bool) -> None:
        """`guarded`: the server has API keys."""
        self._document = msgspec.json.encode(describe_api(guarded=guarded))

    async def document(self, request: Request) -> Response:
        """The description as JSON."""
        return Response(self._document, media_type="application/json")


def describe_api(*, guarded: bool) -> dict[str, Any]:
    """An OpenAPI 3.1 document; `guarded`: that keys are needed is part of it.

    Limits that depend on the model or on settings are not in it: what is over them gets a 400 that names them.
    """
    _, schemas = msgspec.json.schema_components(STRUCTS, ref_template=REF)
    schemas["ChatMessage"]["properties"]["role"]["enum"] = list(ROLES)
    schemas["ChatCompletionRequest"]["properties"]["messages"]["minItems"] = 1
    for kind in (CompletionRequest, ChatCompletionRequest):  # anything else in these fields is refused
        for name, neutral in kind.neutral.items():
            schemas[kind.__name__]["properties"][name] = {"enum": [None, *neutral]}
        for name, limits in RANGES.items():
            for option in schemas[kind.__name__]["properties"].get(name, {}).get("anyOf", ()):
                if option.get("type") in ("integer", "number"):
                    option.update(limits)
    content = schemas["ChatMessage"]["properties"]["content"]  # null is an assistant's that calls tools
    content["anyOf"] = [option for option in content["anyOf"] if option.get("type") != "null"]
    del content["default"]
    schemas["ChatMessage"]["required"].append("content")
    schemas["ChatMessage"]["properties"]["tool_calls"] = {"enum": [None, []]}
    schemas["ContentPart"]["properties"]["type"]["enum"] = ["text"]
    paths: dict[str, Any] = {
        "/v1/models": {"get": _operation("The served model, in a list.", _json(_ref(ModelList)))},
        "/v1/models/{model}": {
            "get": {
                **_operation("The served model, by its name.", _json(_ref(ModelCard))),
                "parameters": [{"name": "model", "in": "path", "required": True, "schema": {"type": "string"}}],
            }
        },
        "/v1/completions": {"post": _generation("Continue prompts.", CompletionRequest, CompletionChoice)},
        "/v1/chat/completions": {"post": _generation("Answer a conversation.", ChatCompletionRequest, ChatChoice)},
        "/v1/fault_tolerance/status": {"get": _operation("The engine's state.", _json(_ref(EngineStatus)))},
        "/health": {"get": _operation("200 unless the engine is dead for good.", _json({"type": "object"}))},
        "/ready": {"get": _ready()},
        "/metrics": {"get": _operation("Prometheus' text format.", {"text/plain": {"schema": {"type": "string"}}})},
        "/version": {"get": _operation("GhostServe's version.", _json({"type": "object", "required": ["version"]}))},
        "/openapi.json": {"get": _operation("This description.", _json({"type": "object"}))},
    }
    if guarded:
        for path in paths.keys() - OPEN_PATHS:
            for operation in paths[path].values():
                operation["security"] = [{"key": []}]
    return {
        "openapi": "3.1.0",
        "info": {"title": "GhostServe", "version": __version__},
        "paths": paths,
        "components": {"schemas": schemas, "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}}},
    }


def _operation(summary: str, content: dict[str, Any]) -> dict[str, Any]:
    return {
        "summary": summary,
        "responses": {
            "200": {"description": "As asked.", "content": content},
            "default": {"description": "An error.", "content": _json(_ref(ErrorAnswer))},
        },
    }


def _generation(summary: str, request: type, choice: type) -> dict[str, Any]:
    choices = {"properties": {"choices": {"items": _ref(choice)}}}
    events: dict[str, Any] = {"text/event-stream": {}}  # where `stream` is true
    return {
        **_operation(summary, {**_json({"allOf": [_ref(Envelope), choices]}), **events}),
        "requestBody": {"required": True, "content": _json(_ref(request))},
    }


def _ready() -> dict[str, Any]:
    operation = _operation("200 when a new request would be run now.", _json({"type": "object"}))
    operation["responses"]["503"] = {"description": "It recovers, or is dead.", "content": _json({"type": "object"})}
    return operation


def _json(schema: dict[str, Any]) -> dict[str, Any]:
    return {"application/json": {"schema": schema}}


def _ref(struct: type) -> dict[str, str]:
    return {"$ref": REF.format(name=struct.__name__)}
