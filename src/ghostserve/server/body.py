"""Reads a request's body within its limit and decodes it into a request struct."""

import asyncio
import re
from itertools import accumulate
from typing import Any, TypeVar

import msgspec
from starlette.requests import Request

from ghostserve.server.errors import ApiError, describe
from ghostserve.server.protocol import GenerationRequest
from ghostserve.server.settings import ServerSettings

__all__ = ["RequestT", "decode_request", "read_body", "refuse_unsupported"]

RequestT = TypeVar("RequestT", bound=GenerationRequest)

# A body over the limit is read on and thrown away up to this many times the limit: closing a connection with
# unread data resets it, and the client would see the reset instead of the answer.
DISCARD_FACTOR = 4
STRING = re.compile(rb'"(?:[^"\\]++|\\.)*+"', re.DOTALL)
NOT_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))
STEP = {ord("["): 1, ord("{"): 1, ord("]"): -1, ord("}"): -1}
PATH = re.compile(r" - at `(?P<path>[^`]*)`$")
PATH_STEP = re.compile(r"\.(?P<name>\w+)|\[(?P<index>\d+)\]")


async def read_body(request: Request, settings: ServerSettings) -> bytes:
    """The whole body. Raises `ApiError`: 413 for one that is too large, 408 for one that is too slow."""
    try:
        async with asyncio.timeout(settings.body_timeout):
            return await _read(request, settings.max_body_bytes)
    except TimeoutError as error:
        raise ApiError(f"the body took longer than the {settings.body_timeout:g} s allowed", status=408) from error


async def _read(request: Request, limit: int) -> bytes:
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > limit * DISCARD_FACTOR:
        raise _too_large(limit)
    kept: list[bytes] = []
    size = 0
    async for part in request.stream():
        size += len(part)
        if size > limit * DISCARD_FACTOR:
            break
        if size <= limit:
            kept.append(part)
    if size > limit:
        raise _too_large(limit)
    return b"".join(kept)


def decode_request(body: bytes, kind: type[RequestT], max_depth: int) -> RequestT:
    """Decode and check types; messages name the field, its value and what was expected.

    May take a while for a large body, so it is called in a thread.
    """
    if _depth(body) > max_depth:
        raise ApiError(f"the body is not valid JSON: nested deeper than {max_depth}", code="invalid_json")
    try:
        request = msgspec.json.decode(body, type=kind)
    except msgspec.ValidationError as error:
        raise _type_error(body, str(error)) from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ApiError(f"the body is not valid JSON: {error or 'nested too deeply'}", code="invalid_json") from error
    refuse_unsupported(request)
    return request


def refuse_unsupported(request: GenerationRequest) -> None:
    """Refuse fields that would change the output but that nothing here implements."""
    for name, neutral in request.neutral.items():
        value = getattr(request, name)
        if value is not None and value not in neutral:
            allowed = " or ".join([*map(describe, neutral), "leaving it out"])
            raise ApiError(
                f"{name} is {describe(value)}: this is not supported; allowed: {allowed}",
                param=name,
                code="unsupported_parameter",
            )


def _depth(body: bytes) -> int:
    """How deep brackets are nested outside of strings; right for valid JSON, and anything for what is none."""
    brackets = STRING.sub(b"", body).translate(None, NOT_BRACKETS)
    return max(accumulate(map(STEP.__getitem__, brackets)), default=0)


def _too_large(limit: int) -> ApiError:
    return ApiError(f"the body is larger than the {limit} bytes allowed", status=413, code="request_too_large")


def _type_error(body: bytes, message: str) -> ApiError:
    """msgspec says where and what type; the refused value itself is looked up again."""
    found = PATH.search(message)
    if found is None:
        return ApiError(f"{message}; a JSON object is expected", code="invalid_type")
    path = found["path"].removeprefix("$").lstrip(".")
    what = message[: found.start()]
    try:
        shown = f"{path} is {describe(_lookup(msgspec.json.decode(body), found['path']))}: "
    except (msgspec.DecodeError, RecursionError):
        # The value is one that JSON allows and Python can't hold, or the body is malformed further on.
        shown = f"{path}: "
    return ApiError(f"{shown if path else ''}{what}", param=path or None, code="invalid_type")


def _lookup(value: Any, path: str) -> Any:
    for step in PATH_STEP.finditer(path):
        value = value[int(step["index"])] if step["index"] else value[step["name"]]
    return value
