"""The answers of the OpenAI API, with vLLM's additions. Fields that were not asked for are left out."""

from typing import Any

import msgspec
from msgspec import UNSET, UnsetType

__all__ = [
    "ChatChoice",
    "ChatLogprobs",
    "ChatMessageDelta",
    "ChatTokenLogprob",
    "ChunkChoice",
    "CompletionChoice",
    "CompletionLogprobs",
    "Envelope",
    "ErrorAnswer",
    "ErrorDetail",
    "ModelCard",
    "ModelList",
    "TopLogprob",
    "Usage",
]


class ErrorDetail(msgspec.Struct, kw_only=True):
    """What went wrong; `param` names the field at fault where there is one."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorAnswer(msgspec.Struct, kw_only=True):
    """The body of every answer that is an error."""

    error: ErrorDetail


class ModelCard(msgspec.Struct, kw_only=True):
    """The served model."""

    id: str
    object: str = "model"
    created: int
    owned_by: str = "ghostserve"
    max_model_len: int


class ModelList(msgspec.Struct, kw_only=True):
    """All models, of which there is one."""

    object: str = "list"
    data: list[ModelCard]


class Usage(msgspec.Struct, kw_only=True):
    """Tokens that a request took. A prompt counts once, however many samples are drawn from it."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class Envelope(msgspec.Struct, kw_only=True):
    """A whole answer or one chunk of a streamed one."""

    id: str
    object: str
    created: int
    model: str
    choices: list[Any]
    usage: Usage | UnsetType | None = UNSET
    prompt_token_ids: list[int] | UnsetType = UNSET  # chat only; completions have them in each choice


class CompletionLogprobs(msgspec.Struct, kw_only=True):
    """Logprobs of a completion, as parallel lists."""

    text_offset: list[int] = msgspec.field(default_factory=list)
    token_logprobs: list[float | None] = msgspec.field(default_factory=list)
    tokens: list[str] = msgspec.field(default_factory=list)
    top_logprobs: list[dict[str, float]] = msgspec.field(default_factory=list)


class CompletionChoice(msgspec.Struct, kw_only=True):
    """A choice of a completion, whole or a chunk of it."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None = None
    finish_reason: str | None = None
    stop_reason: str | int | None = None
    token_ids: list[int] | UnsetType = UNSET
    prompt_token_ids: list[int] | UnsetType = UNSET


class TopLogprob(msgspec.Struct, kw_only=True):
    """One alternative for a token."""

    token: str
    logprob: float
    bytes: list[int]


class ChatTokenLogprob(TopLogprob, kw_only=True):
    """A chosen token with its alternatives."""

    top_logprobs: list[TopLogprob]


class ChatLogprobs(msgspec.Struct, kw_only=True):
    """Logprobs of a chat message."""

    content: list[ChatTokenLogprob]


class ChatMessageDelta(msgspec.Struct, kw_only=True):
    """A message, or what a chunk adds to it."""

    role: str | UnsetType = UNSET
    content: str | UnsetType = UNSET


class _ChatChoice(msgspec.Struct, kw_only=True):
    index: int
    logprobs: ChatLogprobs | None = None
    finish_reason: str | None = None
    stop_reason: str | int | None = None
    token_ids: list[int] | UnsetType = UNSET


class ChatChoice(_ChatChoice, kw_only=True):
    """A whole chat choice."""

    message: ChatMessageDelta


class ChunkChoice(_ChatChoice, kw_only=True):
    """A chunk of a chat choice."""

    delta: ChatMessageDelta
