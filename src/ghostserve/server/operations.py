"""The endpoints for operators: health, readiness, metrics, fault tolerance, version."""

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from ghostserve import __version__
from ghostserve.server.engine_client import EngineClient
from ghostserve.server.metrics import RequestMetrics
from ghostserve.server.settings import ServerSettings

__all__ = ["OperationsEndpoints"]


class OperationsEndpoints:
    """What supervisors, load balancers and dashboards ask."""

    def __init__(self, engine: EngineClient, settings: ServerSettings, metrics: RequestMetrics) -> None:
        self._engine = engine
        self._settings = settings
        self._metrics = metrics

    async def health(self, request: Request) -> Response:
        """200 while a restart would not help, so also during a recovery; 503 when the engine is dead."""
        await self._engine.check_health()  # raises what the error handler answers with 503
        return _json({"status": "ok", "state": self._engine.status().state})

    async def ready(self, request: Request) -> Response:
        """200 when a new request would be run now; 503 while recovering, or failed."""
        status = self._engine.status()
        body = {"state": status.state, "epoch": status.epoch}
        if status.state == "serving":
            return _json(body)
        return _json(body, 503, {"Retry-After": str(self._settings.retry_after_seconds)})

    async def metrics(self, request: Request) -> Response:
        """Prometheus' text format."""
        return Response(self._metrics.exposition(), headers={"content-type": RequestMetrics.content_type})

    async def fault_tolerance(self, request: Request) -> Response:
        """The engine's whole status."""
        return _json(self._engine.status())

    async def version(self, request: Request) -> Response:
        """GhostServe's version."""
        return _json({"version": __version__})


def _json(content: object, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(msgspec.json.encode(content), status_code=status, headers=headers, media_type="application/json")
