"""Errors in OpenAI's shape: `{"error": {"message", "type", "param", "code"}}`."""

import logging
from http import HTTPStatus
from typing import Any

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from ghostserve.errors import GhostServeError, RequestError
from ghostserve.server.responses import ErrorAnswer, ErrorDetail
from ghostserve.server.settings import ServerSettings

__all__ = ["ApiError", "ErrorHandlers", "describe", "error_body", "status_of"]

logger = logging.getLogger(__name__)

CLIENT_CLOSED_REQUEST = 499  # nobody reads the answer; the number is nginx's
SHOWN_CHARACTERS = 120


class ApiError(RequestError):
    """A refused request with a machine-readable `code`."""

    def __init__(self, message: str, *, param: str | None = None, status: int = 400, code: str | None = None) -> None:
        super().__init__(message, param=param, status=status)
        self.code = code


def describe(value: object) -> str:
    """The refused value as JSON, cut short so that a huge one can't fill the answer."""
    text = msgspec.json.encode(value).decode(errors="replace")
    return text if len(text) <= SHOWN_CHARACTERS else text[:SHOWN_CHARACTERS] + "..."


def status_of(error: Exception) -> int:
    """The HTTP status that stands for `error`."""
    if isinstance(error, RequestError):
        return error.status
    if isinstance(error, GhostServeError):
        return HTTPStatus.SERVICE_UNAVAILABLE
    return HTTPStatus.INTERNAL_SERVER_ERROR


def error_body(error: Exception) -> ErrorAnswer:
    """What tells a client about `error`; an unexpected one is not shown in detail."""
    status = status_of(error)
    code = getattr(error, "code", None)
    if code is None and status != HTTPStatus.BAD_REQUEST:
        code = "engine_unavailable" if _is_engine_failure(error) else HTTPStatus(status).name.lower()
    return ErrorAnswer(
        error=ErrorDetail(
            message=str(error) if isinstance(error, GhostServeError) else "the server failed; its log says why",
            type=_type_of(status),
            param=getattr(error, "param", None),
            code=code,
        )
    )


def _type_of(status: int) -> str:
    if status == HTTPStatus.TOO_MANY_REQUESTS:
        return "rate_limit_error"
    return "server_error" if status >= 500 else "invalid_request_error"


def _is_engine_failure(error: Exception) -> bool:
    return isinstance(error, GhostServeError) and not isinstance(error, RequestError)


class ErrorHandlers:
    """Turns exceptions that leave an endpoint into responses."""

    def __init__(self, settings: ServerSettings) -> None:
        self._retry_after = str(settings.retry_after_seconds)

    async def on_error(self, request: Request, error: Exception) -> Response:
        """A GhostServeError, or with Starlette's own logging anything unexpected."""
        if _is_engine_failure(error):
            logger.error("%s %s failed: %s", request.method, request.url.path, error)
        return self.response(error, {})

    async def on_http_exception(self, request: Request, error: Exception) -> Response:
        """An unknown path or a wrong method."""
        if not isinstance(error, HTTPException):
            raise error
        headers = dict(error.headers or {})
        where = f"{request.method} {request.url.path}"
        message = f"{where}: {error.detail}"
        if error.status_code == HTTPStatus.NOT_FOUND:
            message = f"{where}: no such path; the API is below /v1"
        elif error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
            message = f"{where}: this path allows {headers.get('Allow', 'other methods')}"
        return self.response(ApiError(message, status=error.status_code), headers)

    async def on_disconnect(self, request: Request, error: Exception) -> Response:
        """The client went away before there was an answer."""
        logger.debug("%s %s: the client went away", request.method, request.url.path)
        return Response(status_code=CLIENT_CLOSED_REQUEST)

    def table(self) -> dict[Any, Any]:
        """The handlers by exception class, as Starlette takes them."""
        return {
            GhostServeError: self.on_error,
            Exception: self.on_error,
            HTTPException: self.on_http_exception,
            ClientDisconnect: self.on_disconnect,
        }

    def response(self, error: Exception, headers: dict[str, str]) -> Response:
        """The answer that tells the client about `error`."""
        status = status_of(error)
        if status in (HTTPStatus.SERVICE_UNAVAILABLE, HTTPStatus.TOO_MANY_REQUESTS):
            headers["Retry-After"] = self._retry_after
        if status in (HTTPStatus.INTERNAL_SERVER_ERROR, HTTPStatus.REQUEST_TIMEOUT):
            # uvicorn closes it after an unexpected error, and after 408 a body is half read: say so.
            headers["Connection"] = "close"
        body = msgspec.json.encode(error_body(error))
        return Response(body, status_code=status, headers=headers, media_type="application/json")
