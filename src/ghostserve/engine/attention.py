"""Paged attention for transformers models, through transformers' attention registry.

All sequences of a step lie packed in one row of tokens `[1, T]`. Each layer writes its keys and values into the step's
slots of the paged cache, then every sequence attends over its own blocks: one by one over PyTorch's
scaled_dot_product_attention, or all of them in one call of PyTorch's variable-length attention (`varlen`).
"""

from dataclasses import dataclass

import torch
from torch.nn import functional
from transformers import AttentionInterface, AttentionMaskInterface

from ghostserve.engine import varlen
from ghostserve.engine.varlen import Packed
from ghostserve.errors import UnsupportedModelError

__all__ = ["ATTENTION", "PagedBatch", "PagedKV", "SequenceView", "register_attention"]

ATTENTION = "ghostserve_paged"
_UNSUPPORTED = ("s_aux", "position_bias", "head_mask", "indices")


@dataclass(frozen=True)
class PagedKV:
    """A rank's KV cache: `[layers, 2, blocks, block_size, kv_heads, head_dim]`, K at 0 and V at 1."""

    cache: torch.Tensor


@dataclass(frozen=True)
class SequenceView:
    """Tokens `first..last` of the packed row belong to one sequence, at positions `start..`; `blocks` int64."""

    first: int
    last: int
    start: int
    blocks: torch.Tensor

    @property
    def length(self) -> int:
        return self.start + self.last - self.first


@dataclass(frozen=True)
class PagedBatch:
    """What a layer needs to know of the step; `slots` int64 `[T]` are flat slot numbers.

    `packed`: the same sequences as the variable-length attention wants them, where that is to be used.
    """

    kv: PagedKV
    slots: torch.Tensor
    sequences: tuple[SequenceView, ...]
    packed: Packed | None = None


def register_attention() -> None:
    """Make `ATTENTION` known to transformers; calling it again changes nothing."""
    AttentionInterface.register(ATTENTION, paged_attention)
    AttentionMaskInterface.register(ATTENTION, _no_mask)


def _no_mask(*args: object, **kwargs: object) -> None:
    return None  # causality follows from the positions, sequence by sequence


def paged_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    paged: PagedBatch,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    dropout: float = 0.0,
    **kwargs: object,
) -> tuple[torch.Tensor, None]:
    """query `[1, heads, T, d]`, key and value `[1, kv_heads, T, d]`; returns `[1, T, heads, d]`."""
    needs = [name for name in _UNSUPPORTED if kwargs.get(name) is not None]
    if needs or not getattr(module, "is_causal", True):
        raise UnsupportedModelError(f"{type(module).__name__} needs {', '.join(needs) or 'non-causal attention'}")
    if key.shape[-1] != value.shape[-1]:
        raise UnsupportedModelError(f"{type(module).__name__} has keys and values of different sizes")
    layer_index = module.layer_idx
    assert isinstance(layer_index, int)
    layer = paged.kv.cache[layer_index]
    flat = layer.flatten(1, 2)  # [2, slots, kv_heads, d]
    # No slot comes twice in a step, so that the order of the writes can't matter.
    flat[0].index_copy_(0, paged.slots, key[0].transpose(0, 1))
    flat[1].index_copy_(0, paged.slots, value[0].transpose(0, 1))
    if paged.packed is not None and softcap is None:
        packed = query[0].transpose(0, 1)
        return varlen.attend(packed, layer, paged.packed, scaling, sliding_window).unsqueeze(0), None
    out = torch.empty_like(query[0])
    # One sequence after the other through the same memory, which stays in the processor's cache.
    room = layer.new_empty((2, max(len(s.blocks) for s in paged.sequences), *layer.shape[2:]))
    for sequence in paged.sequences:
        window = slice(sequence.first, sequence.last)
        keys, values = _gather(layer[0], sequence, room[0]), _gather(layer[1], sequence, room[1])
        out[:, window] = _attend(query[0, :, window], keys, values, sequence.start, scaling, sliding_window, softcap)
    return out.transpose(0, 1).unsqueeze(0), None


def _gather(cache: torch.Tensor, sequence: SequenceView, room: torch.Tensor) -> torch.Tensor:
    """The sequence's keys or values, `[kv_heads, length, d]`, in `room`: as many blocks as it has, or more."""
    blocks = torch.index_select(cache, 0, sequence.blocks, out=room[: len(sequence.blocks)])
    return blocks.flatten(0, 1)[: sequence.length].transpose(0, 1)


def _attend(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    start: int,
    scaling: float | None,
    sliding_window: int | None,
    softcap: float | None,
) -> torch.Tensor:
    """query `[heads, q, d]` at positions `start..`, keys and values `[kv_heads, length, d]`."""
    count, length = query.shape[1], keys.shape[1]
    mask = None
    window = sliding_window if sliding_window is not None and length > sliding_window else None
    if window is not None or (count > 1 and (start > 0 or softcap is not None)):
        positions = torch.arange(start, start + count, device=query.device).unsqueeze(1)
        past = torch.arange(length, device=query.device).unsqueeze(0)
        mask = past <= positions
        if window is not None:
            mask &= past > positions - window
    if softcap is not None:
        return _attend_softcap(query, keys, values, mask, scaling, softcap)
    if count == 1:
        # The heads that share a key are the rows of one product: on a CPU faster than head by head.
        folded = query.reshape(keys.shape[0], -1, query.shape[2]).unsqueeze(0)
        out = functional.scaled_dot_product_attention(
            folded, keys.unsqueeze(0), values.unsqueeze(0), attn_mask=mask, scale=scaling
        )
        return out.reshape(query.shape)
    return functional.scaled_dot_product_attention(
        query.unsqueeze(0),
        keys.unsqueeze(0),
        values.unsqueeze(0),
        attn_mask=mask,
        is_causal=mask is None and count > 1,
        scale=scaling,
        enable_gqa=True,
    )[0]


def _attend_softcap(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    mask: torch.Tensor | None,
    scaling: float | None,
    softcap: float,
) -> torch.Tensor:
    groups = query.shape[0] // keys.shape[0]
    keys, values = keys.repeat_interleave(groups, 0), values.repeat_interleave(groups, 0)
    scores = torch.matmul(query, keys.transpose(1, 2)) * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    scores = softcap * torch.tanh(scores / softcap)
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    return torch.matmul(torch.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype), values)
