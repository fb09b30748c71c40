"""What vLLM's server answers besides: the engine's fault tolerance status, readiness, and metrics.

Given to vLLM as `--middleware ghostserve.vllm.middleware.FaultToleranceMiddleware`.
"""

import logging
from pathlib import Path
from typing import Any

import msgspec
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from ghostserve.vllm.config import plugin_config
from ghostserve.vllm.metrics import metrics_registered
from ghostserve.vllm.status_file import read_status, status_path

__all__ = ["FaultToleranceMiddleware"]

log = logging.getLogger("vllm.ghostserve.middleware")

RETRY_AFTER_SECONDS = 1


class FaultToleranceMiddleware:
    """Adds two routes and a metrics collector when the server starts; every request passes untouched.

    vLLM calls what `--middleware` names before its own check of `--api-key`. Answering here would show the status to
    everybody; routes come after that check, and /v1 is what it guards. /ready is open, as vLLM's /health is.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        vllm_config = getattr(scope["app"].state, "vllm_config", None) if scope["type"] == "lifespan" else None
        if vllm_config is None:  # a request, or a server without an engine
            await self._app(scope, receive, send)
            return
        path = status_path(plugin_config(vllm_config).status_path, vllm_config.instance_id)
        _add_routes(scope["app"], path)
        with metrics_registered(path):
            await self._app(scope, receive, send)


def _add_routes(app: Starlette, path: Path) -> None:
    async def fault_tolerance(request: Request) -> Response:
        status = read_status(path)
        return _unknown(path) if status is None else _json(status)

    async def ready(request: Request) -> Response:
        status = read_status(path)
        if status is None:
            return _unknown(path)
        body = {"state": status.state, "epoch": status.epoch}
        return _json(body) if status.state == "serving" else _json(body, 503)

    app.add_route("/v1/fault_tolerance/status", fault_tolerance, methods=["GET"])
    app.add_route("/ready", ready, methods=["GET"])
    log.info("GET /v1/fault_tolerance/status and /ready tell what %s has", path)


def _unknown(path: Path) -> Response:
    """In the shape of vLLM's own errors."""
    message = (
        f"no running engine publishes its status at {path}: is GhostServeExecutor the distributed executor backend?"
        " Several API servers need status_path in the settings."
    )
    return _json({"error": {"message": message, "type": "ServiceUnavailableError", "param": None, "code": 503}}, 503)


def _json(content: Any, status: int = 200) -> Response:
    headers = {"Retry-After": str(RETRY_AFTER_SECONDS)} if status == 503 else None
    return Response(msgspec.json.encode(content), status_code=status, headers=headers, media_type="application/json")
