"""The requests of the OpenAI API, as far as they are served, with vLLM's additions.

Every field may be null, which means its default. Fields that are not listed are ignored, as OpenAI and vLLM
do; fields that would change the output but are not implemented are listed, so that they can be refused.
"""

from typing import Any, ClassVar

import msgspec

__all__ = [
    "ChatCompletionRequest",
    "ChatMessage",
    "CompletionRequest",
    "ContentPart",
    "GenerationRequest",
    "StreamOptions",
]


class StreamOptions(msgspec.Struct):
    """`include_usage`: one more chunk with the usage before `[DONE]`."""

    include_usage: bool | None = None


class GenerationRequest(msgspec.Struct, kw_only=True):
    """What completions and chat completions have in common."""

    # Values that ask for nothing, by the field's name; anything else in these fields is refused.
    neutral: ClassVar[dict[str, tuple[Any, ...]]] = {
        "best_of": (1,),
        "frequency_penalty": (0,),
        "presence_penalty": (0,),
        "repetition_penalty": (1,),
        "logit_bias": ({},),
        "min_p": (0,),
        "min_tokens": (0,),
        "use_beam_search": (False,),
        "prompt_logprobs": (),
        "structured_outputs": ({},),
    }

    model: str | None = None
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    n: int | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = None
    ignore_eos: bool | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    return_token_ids: bool | None = None

    best_of: Any = None
    frequency_penalty: Any = None
    presence_penalty: Any = None
    repetition_penalty: Any = None
    logit_bias: Any = None
    min_p: Any = None
    min_tokens: Any = None
    use_beam_search: Any = None
    prompt_logprobs: Any = None
    structured_outputs: Any = None


class CompletionRequest(GenerationRequest, kw_only=True):
    """The body of `/v1/completions`."""

    neutral: ClassVar[dict[str, tuple[Any, ...]]] = {
        **GenerationRequest.neutral,
        "echo": (False,),
        "suffix": ("",),
    }

    prompt: str | list[str | int | list[int]]  # msgspec has no union of list types: see prompts.py for the rest
    logprobs: int | None = None

    echo: Any = None
    suffix: Any = None


class ContentPart(msgspec.Struct):
    """One part of a message; only `text` parts are served."""

    type: str
    text: str | None = None


class ChatMessage(msgspec.Struct):
    """One message of a conversation."""

    role: str
    content: str | list[ContentPart] | None = None
    name: str | None = None
    tool_calls: Any = None


class ChatCompletionRequest(GenerationRequest, kw_only=True):
    """The body of `/v1/chat/completions`."""

    neutral: ClassVar[dict[str, tuple[Any, ...]]] = {
        **GenerationRequest.neutral,
        "tools": ([],),
        "tool_choice": ("none", "auto"),
        "functions": ([],),
        "function_call": ("none", "auto"),
        "response_format": ({"type": "text"},),
        "modalities": (["text"],),
        "audio": (),
        "chat_template": (),
        "chat_template_kwargs": ({},),
        "continue_final_message": (False,),
    }

    messages: list[ChatMessage]
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None

    tools: Any = None
    tool_choice: Any = None
    functions: Any = None
    function_call: Any = None
    response_format: Any = None
    modalities: Any = None
    audio: Any = None
    chat_template: Any = None
    chat_template_kwargs: Any = None
    continue_final_message: Any = None
