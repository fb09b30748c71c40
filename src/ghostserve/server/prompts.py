"""Turns the `prompt` of a completion request into token ids, one list for each prompt."""

from collections.abc import Sequence
from typing import Any

from ghostserve.server.errors import ApiError, describe

__all__ = ["check_token_ids", "encode_text", "prompt_token_ids"]


def prompt_token_ids(prompt: str | list[str | int | list[int]], tokenizer: Any) -> list[list[int]]:
    """The four forms of a prompt: a text, token ids, texts, or lists of token ids."""
    if isinstance(prompt, str):
        return [_encode_prompt(prompt, tokenizer)]
    if not prompt:
        raise ApiError("prompt is []: it must not be empty", param="prompt")
    if all(isinstance(item, int) for item in prompt):
        return [_checked_ids([item for item in prompt if isinstance(item, int)], tokenizer)]
    if all(isinstance(item, str) for item in prompt):
        return [_encode_prompt(item, tokenizer) for item in prompt if isinstance(item, str)]
    if all(isinstance(item, list) for item in prompt):
        return [_checked_ids(item, tokenizer) for item in prompt if isinstance(item, list)]
    raise ApiError(
        f"prompt is {describe(prompt)}: a list must hold only strings, only token ids or only lists of token ids",
        param="prompt",
    )


def encode_text(text: str, tokenizer: Any, *, add_special_tokens: bool) -> list[int]:
    """Token ids of `text`, never truncated."""
    return list(tokenizer.encode(text, add_special_tokens=add_special_tokens, truncation=False))


def check_token_ids(token_ids: Sequence[int], vocab_size: int, *, param: str) -> None:
    """Refuse ids that no token of the vocabulary has."""
    for token_id in token_ids:
        if not 0 <= token_id < vocab_size:
            raise ApiError(
                f"{param} holds token id {token_id}: the vocabulary has the ids 0 to {vocab_size - 1}",
                param=param,
            )


def _encode_prompt(text: str, tokenizer: Any) -> list[int]:
    # Checked before encoding: a tokenizer may add a BOS token, which would hide that the prompt is empty.
    token_ids = encode_text(text, tokenizer, add_special_tokens=True) if text else []
    if not token_ids:
        raise ApiError(f"prompt is {describe(text)}: it must have at least one token", param="prompt")
    return token_ids


def _checked_ids(token_ids: list[int], tokenizer: Any) -> list[int]:
    if not token_ids:
        raise ApiError("prompt is []: it must have at least one token", param="prompt")
    check_token_ids(token_ids, len(tokenizer), param="prompt")
    return token_ids
