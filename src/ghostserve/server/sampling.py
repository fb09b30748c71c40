"""Checks the sampling fields of a request and turns them into `SamplingParams`.

Ranges: temperature 0..2 (OpenAI's; 0 is greedy), top_p above 0 up to 1, top_k -1 or 0 (off) or more, seeds
0..2**63-1; what else is limited is in the settings.
"""

import math

from ghostserve.sampling import SamplingParams
from ghostserve.server.errors import ApiError, describe
from ghostserve.server.prompts import check_token_ids
from ghostserve.server.protocol import GenerationRequest
from ghostserve.server.settings import ServerSettings

__all__ = ["choose_max_tokens", "sampling_params", "stop_strings"]

MAX_SEED = 2**63 - 1
MAX_TEMPERATURE = 2.0


def sampling_params(
    request: GenerationRequest,
    settings: ServerSettings,
    *,
    max_tokens: int,
    logprobs: int | None,
    logprobs_param: str,
    vocab_size: int,
) -> SamplingParams:
    """The request's sampling, every value checked."""
    stop_token_ids = tuple(request.stop_token_ids or ())
    if len(stop_token_ids) > settings.max_stop_token_ids:
        raise ApiError(
            f"stop_token_ids has {len(stop_token_ids)} ids: at most {settings.max_stop_token_ids} are allowed",
            param="stop_token_ids",
        )
    check_token_ids(stop_token_ids, vocab_size, param="stop_token_ids")
    if logprobs is not None:
        _check_int(logprobs_param, logprobs, 0, settings.max_logprobs)
    if request.seed is not None:
        _check_int("seed", request.seed, 0, MAX_SEED)
    return SamplingParams(
        temperature=_temperature(request.temperature),
        top_p=_top_p(request.top_p),
        top_k=_top_k(request.top_k, vocab_size),
        max_tokens=max_tokens,
        seed=request.seed,
        stop_token_ids=stop_token_ids,
        logprobs=logprobs,
        ignore_eos=bool(request.ignore_eos),
    )


def choose_max_tokens(
    asked: int | None,
    *,
    default: int | None,
    prompt_tokens: int,
    max_model_len: int,
    param: str,
    prompt_param: str,
) -> int:
    """How many tokens to generate: what was asked, else the default, cut to what the context has left."""
    left = max_model_len - prompt_tokens
    if left < 1:
        raise ApiError(
            f"{prompt_param} has {prompt_tokens} tokens: at most {max_model_len - 1} are allowed, "
            f"since prompt and completion share a context of {max_model_len}",
            param=prompt_param,
            code="context_length_exceeded",
        )
    if asked is None:
        return left if default is None else min(default, left)
    if asked < 1:
        raise ApiError(f"{param} is {asked}: it must be at least 1", param=param)
    if asked > left:
        raise ApiError(
            f"{param} is {asked}, and {prompt_param} has {prompt_tokens} tokens: "
            f"at most {left} are left in a context of {max_model_len}",
            param=param,
            code="context_length_exceeded",
        )
    return asked


def stop_strings(stop: str | list[str] | None, settings: ServerSettings) -> tuple[str, ...]:
    """The stop strings: not too many, none too long and none empty."""
    stops = (stop,) if isinstance(stop, str) else tuple(stop or ())
    if len(stops) > settings.max_stop_strings:
        raise ApiError(f"stop has {len(stops)} strings: at most {settings.max_stop_strings} are allowed", param="stop")
    longest = max(map(len, stops), default=0)
    if longest > settings.max_stop_length:
        raise ApiError(
            f"stop has a string of {longest} characters: at most {settings.max_stop_length} are allowed", param="stop"
        )
    if "" in stops:
        raise ApiError(f"stop is {describe(stop)}: a stop string must not be empty", param="stop")
    return stops


def _temperature(value: float | None) -> float:
    if value is None:
        return 1.0
    if not (math.isfinite(value) and 0 <= value <= MAX_TEMPERATURE):
        raise ApiError(f"temperature is {value}: it must be from 0 to {MAX_TEMPERATURE}", param="temperature")
    return value


def _top_p(value: float | None) -> float:
    if value is None:
        return 1.0
    if not 0 < value <= 1:
        raise ApiError(f"top_p is {value}: it must be above 0 and at most 1", param="top_p")
    return value


def _top_k(value: int | None, vocab_size: int) -> int:
    if value is None:
        return 0
    if value < -1:
        raise ApiError(f"top_k is {value}: it must be -1 or 0 (off) or at least 1", param="top_k")
    return min(value, vocab_size)


def _check_int(name: str, value: int, low: int, high: int) -> None:
    if not low <= value <= high:
        raise ApiError(f"{name} is {value}: it must be from {low} to {high}", param=name)
