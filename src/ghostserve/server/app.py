"""Puts the endpoints together."""

from collections.abc import Sequence

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.routing import Route

from ghostserve.server.endpoints import OpenAIEndpoints
from ghostserve.server.engine_client import EngineClient
from ghostserve.server.errors import ErrorHandlers
from ghostserve.server.gate import ApiKeys, Gate
from ghostserve.server.metrics import RequestMetrics
from ghostserve.server.openapi import OpenApiEndpoint
from ghostserve.server.operations import OperationsEndpoints
from ghostserve.server.settings import ServerSettings

__all__ = ["create_app"]


def create_app(
    engine: EngineClient, settings: ServerSettings | None = None, *, api_keys: Sequence[str] = ()
) -> Starlette:
    """The ASGI application that serves `engine`; starting and stopping the engine stays with the caller.

    With `api_keys` every path but those of `OPEN_PATHS` needs one of them. Raises `ConfigError` for a bad key.
    """
    settings = settings or ServerSettings()
    metrics = RequestMetrics(engine)
    errors = ErrorHandlers(settings)
    openai = OpenAIEndpoints(engine, settings, metrics)
    operations = OperationsEndpoints(engine, settings, metrics)
    app = Starlette(
        routes=[
            Route("/v1/models", openai.models, methods=["GET"]),
            Route("/v1/models/{model:path}", openai.model, methods=["GET"]),
            Route("/v1/completions", openai.completions, methods=["POST"]),
            Route("/v1/chat/completions", openai.chat_completions, methods=["POST"]),
            Route("/v1/fault_tolerance/status", operations.fault_tolerance, methods=["GET"]),
            Route("/health", operations.health, methods=["GET"]),
            Route("/ready", operations.ready, methods=["GET"]),
            Route("/metrics", operations.metrics, methods=["GET"]),
            Route("/openapi.json", OpenApiEndpoint(guarded=bool(api_keys)).document, methods=["GET"]),
            Route("/version", operations.version, methods=["GET"]),
        ],
        exception_handlers=errors.table(),
        middleware=[Middleware(Gate, ApiKeys(api_keys), settings, errors)],
    )
    app.router.redirect_slashes = False  # a redirected POST loses its body; say 404 instead
    return app
