"""The outermost door: API keys and the number of headers, before anything of a request is read."""

import hashlib
import hmac
from collections.abc import Sequence

from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from ghostserve.errors import ConfigError
from ghostserve.server.errors import ApiError, ErrorHandlers
from ghostserve.server.settings import ServerSettings

__all__ = ["OPEN_PATHS", "ApiKeys", "Gate"]

OPEN_PATHS = frozenset({"/health", "/ready", "/metrics"})  # what probes and scrapers ask, without a key


class ApiKeys:
    """The keys that are accepted; none: everybody is. Raises `ConfigError` for a key that no header can carry."""

    def __init__(self, keys: Sequence[str] = ()) -> None:
        for number, key in enumerate(keys, 1):  # a key is a secret: the message must not show it
            if not key or not all("!" <= character <= "~" for character in key):
                raise ConfigError(f"API key {number} is empty or has characters that are not visible ASCII")
        self._digests = [_digest(key.encode()) for key in keys]

    def __bool__(self) -> bool:
        return bool(self._digests)

    def accepts(self, authorization: bytes | None) -> bool:
        """Whether an `Authorization` header's value is `Bearer KEY`; takes as long for a wrong key as for a right one.

        Digests are compared, so the time does not depend on a key's length; and all of them, whichever fits.
        """
        scheme, _, token = (authorization or b"").partition(b" ")
        given = _digest(token.strip())
        fits = [hmac.compare_digest(given, digest) for digest in self._digests]
        return any(fits) and scheme.lower() == b"bearer"


class Gate:
    """ASGI middleware around the whole application."""

    def __init__(self, app: ASGIApp, keys: ApiKeys, settings: ServerSettings, errors: ErrorHandlers) -> None:
        self._app = app
        self._keys = keys
        self._settings = settings
        self._errors = errors

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass what may pass; answer 401 or 431 to what may not."""
        error = self._refusal(scope) if scope["type"] == "http" else None
        if error is None:
            await self._app(scope, receive, send)
        else:
            headers = {"WWW-Authenticate": "Bearer"} if error.status == 401 else {}
            await self._errors.response(error, headers)(scope, receive, send)

    def _refusal(self, scope: Scope) -> ApiError | None:
        count, most = len(scope["headers"]), self._settings.h11_max_header_count
        if count > most:
            return ApiError(f"the request has {count} headers: at most {most} are taken", status=431)
        # uvicorn counts only while a head is incomplete: one that came in one piece is counted here.
        size = len(scope["raw_path"]) + sum(len(name) + len(value) for name, value in scope["headers"])
        most = self._settings.h11_max_incomplete_event_size
        if size > most:
            return ApiError(f"the request's head is larger than the {most} bytes allowed", status=431)
        if not self._keys or scope["path"] in OPEN_PATHS:
            return None
        values = [value for name, value in scope["headers"] if name == b"authorization"]
        if len(values) == 1 and self._keys.accepts(values[0]):
            return None
        where = f"{scope['method']} {Request(scope).url.path}"
        what = "the API key is none of this server's" if values else "an API key is needed"
        return ApiError(f"{where}: {what}; send it as `Authorization: Bearer KEY`", status=401, code="invalid_api_key")


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()
