"""What a request asks of sampling and what one sampled token brings back, shared by engine and server."""

import msgspec

__all__ = ["SamplingParams", "TokenOutput"]


class SamplingParams(msgspec.Struct, frozen=True, kw_only=True):
    """How to draw a request's tokens. Names and meanings are vLLM's; the server has checked the ranges."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0  # 0 or -1: off
    max_tokens: int = 16
    seed: int | None = None
    stop_token_ids: tuple[int, ...] = ()
    logprobs: int | None = None  # None: none; else the number of top alternatives, beside the chosen token's own
    ignore_eos: bool = False


class TokenOutput(msgspec.Struct, frozen=True):
    """One generated token. A finished request's last output carries its `finish_reason`."""

    token_id: int
    logprob: float | None
    top_logprobs: tuple[tuple[int, float], ...] = ()
    finish_reason: str | None = None  # "stop": this token is an EOS or stop token; "length": no more were allowed
