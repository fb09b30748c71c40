"""Seeded, counter-based sampling: a draw depends on the logits, the request's seed and the draw's number only.

So a replayed step draws the same token, whichever process runs it.
"""

import torch

from ghostserve.engine.messages import Draw, Sampled

__all__ = ["sample"]

_GOLDEN = 0x9E3779B97F4A7C15


def sample(logits: torch.Tensor, request_id: str, draw: Draw) -> Sampled:
    """Draw one token from float32 logits `[vocab]` on the host; logprobs are those of the unmodified distribution."""
    token = int(logits.argmax()) if draw.temperature == 0 else _draw(logits, draw)
    if draw.logprobs is None:
        return Sampled(request_id, token, None, ())
    logprobs = torch.log_softmax(logits, dim=-1)
    top: tuple[tuple[int, float], ...] = ()
    if draw.logprobs:
        best = logprobs.topk(draw.logprobs)
        top = tuple(zip(best.indices.tolist(), best.values.tolist(), strict=True))
    return Sampled(request_id, token, float(logprobs[token]), top)


def _draw(logits: torch.Tensor, draw: Draw) -> int:
    # From the maximum down: a tiny temperature sends the others to -inf, where it would send many to +inf alike.
    scaled = (logits - logits.max()) / draw.temperature
    values, tokens = scaled.sort(descending=True, stable=True)
    keep = torch.ones_like(values, dtype=torch.bool)
    if 0 < draw.top_k < keep.numel():
        keep[draw.top_k :] = False
    if draw.top_p < 1.0:
        probabilities = torch.softmax(values.masked_fill(~keep, float("-inf")), dim=-1)
        # The first token always stays: what comes before it sums to zero.
        keep &= probabilities.cumsum(0) - probabilities < draw.top_p
    generator = torch.Generator().manual_seed((draw.seed * _GOLDEN + draw.counter) & 0x7FFFFFFFFFFFFFFF)
    # Gumbel-max: the argmax of log p + Gumbel noise is a draw from p, and needs no normalisation.
    uniform = torch.rand(values.numel(), generator=generator, dtype=torch.float64).clamp_min(1e-300)
    noisy = values.double() - torch.log(-torch.log(uniform))
    return int(tokens[int(noisy.masked_fill(~keep, float("-inf")).argmax())])
