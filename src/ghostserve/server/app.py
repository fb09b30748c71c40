"""Puts the endpoints together."""

from starlette.applications import Starlette
from starlette.routing import Route

from ghostserve.server.endpoints import OpenAIEndpoints
from ghostserve.server.engine_client import EngineClient
from ghostserve.server.errors import ErrorHandlers
from ghostserve.server.metrics import RequestMetrics
from ghostserve.server.operations import OperationsEndpoints
from ghostserve.server.settings import ServerSettings

__all__ = ["create_app"]


def create_app(engine: EngineClient, settings: ServerSettings | None = None) -> Starlette:
    """The ASGI application that serves `engine`; starting and stopping the engine stays with the caller."""
    settings = settings or ServerSettings()
    metrics = RequestMetrics(engine)
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
            Route("/version", operations.version, methods=["GET"]),
        ],
        exception_handlers=ErrorHandlers(settings).table(),
    )
    app.router.redirect_slashes = False  # a redirected POST loses its body; say 404 instead
    return app
