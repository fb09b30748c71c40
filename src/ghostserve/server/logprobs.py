"""Logprobs of tokens in the two shapes that the API has for them."""

from ghostserve.sampling import TokenOutput
from ghostserve.server.generation import Delta
from ghostserve.server.responses import ChatLogprobs, ChatTokenLogprob, CompletionLogprobs, TopLogprob
from ghostserve.server.token_text import TokenText

__all__ = ["chat_logprobs", "completion_logprobs"]

LOWEST = -9999.0  # JSON has no -inf; the number is vLLM's


def completion_logprobs(delta: Delta, texts: TokenText) -> CompletionLogprobs:
    """As parallel lists. The chosen token is always among its alternatives."""
    return CompletionLogprobs(
        text_offset=delta.offsets,
        token_logprobs=[_finite(token.logprob) for token in delta.tokens],
        tokens=[texts.text(token.token_id) for token in delta.tokens],
        top_logprobs=[
            {texts.text(token_id): _finite(logprob) for token_id, logprob in _with_chosen(token)}
            for token in delta.tokens
        ],
    )


def chat_logprobs(delta: Delta, texts: TokenText) -> ChatLogprobs:
    """One object a token."""
    return ChatLogprobs(
        content=[
            ChatTokenLogprob(
                token=texts.text(token.token_id),
                logprob=_finite(token.logprob),
                bytes=texts.bytes(token.token_id),
                top_logprobs=[
                    TopLogprob(token=texts.text(token_id), logprob=_finite(logprob), bytes=texts.bytes(token_id))
                    for token_id, logprob in token.top_logprobs
                ],
            )
            for token in delta.tokens
        ]
    )


def _with_chosen(token: TokenOutput) -> list[tuple[int, float | None]]:
    return [*token.top_logprobs, (token.token_id, token.logprob)]


def _finite(logprob: float | None) -> float:
    return LOWEST if logprob is None else max(logprob, LOWEST)
