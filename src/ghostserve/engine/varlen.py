"""PyTorch's variable-length attention (Flash Attention) over the paged cache: all sequences of a step in one call.

Which parameters `varlen_attn` takes depends on the version: 2.11 attends over packed keys only, 2.13 also over a block
table, but the kernel behind it wants pages whose size is a multiple of 256 tokens. With smaller pages the keys and
values are gathered first: one copy a layer, still one launch instead of one a sequence.
"""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from ghostserve.engine.attention import SequenceView

__all__ = ["GATHERED", "PAGED", "SDPA", "Packed", "attend", "choose", "pack", "parameters", "verify"]

GATHERED = "varlen over gathered pages"
PAGED = "varlen over a block table"
SDPA = "scaled_dot_product_attention"

_PAGE = 256
_LARGEST_HEAD = 256


@dataclass(frozen=True)
class Packed:
    """The sequences of a step as `varlen_attn` takes them, on the device.

    `slots` int64 `[T_k]`: the flat slot of each key of each sequence, in order (None over a block table).
    `starts_q`, `starts_k` int32 `[N + 1]`, `lengths` int32 `[N]`, `table` int32 `[N, most blocks]` (None if gathered).
    """

    slots: torch.Tensor | None
    starts_q: torch.Tensor
    starts_k: torch.Tensor
    lengths: torch.Tensor
    table: torch.Tensor | None
    longest_q: int
    longest_k: int


@cache
def parameters() -> frozenset[str]:
    """The parameters of this torch's `varlen_attn`; empty where there is none."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return frozenset()
    return frozenset(inspect.signature(varlen_attn).parameters)


def choose(
    *, device: str, dtype: torch.dtype, head_dim: int, block_size: int, accepts: frozenset[str]
) -> tuple[str, str]:
    """Which attention to use, and why. `accepts`: see `parameters`."""
    if device != "cuda":
        return SDPA, f"the device is {device}"
    if not {"window_size", "scale"} <= accepts:
        return SDPA, f"torch {torch.__version__} has no varlen_attn with window_size and scale"
    if dtype not in (torch.bfloat16, torch.float16):
        return SDPA, f"varlen_attn takes bfloat16 and float16, the model is {str(dtype).removeprefix('torch.')}"
    if head_dim % 8 or head_dim > _LARGEST_HEAD:
        return SDPA, f"varlen_attn takes head sizes of up to {_LARGEST_HEAD} in steps of 8, the model has {head_dim}"
    if not {"block_table", "seqused_k"} <= accepts:
        return GATHERED, f"varlen_attn of torch {torch.__version__} takes no block table"
    if block_size % _PAGE:
        return GATHERED, f"its block table wants blocks of a multiple of {_PAGE} tokens, these have {block_size}"
    return PAGED, "bfloat16 or float16 in large blocks on CUDA"


def pack(kind: str, sequences: Sequence["SequenceView"], block_size: int, device: torch.device) -> Packed | None:
    """`sequences` (their blocks on the host) for `attend`; None where `kind` is `SDPA`."""
    if kind == SDPA:
        return None
    starts_q, starts_k = [0], [0]
    for sequence in sequences:
        starts_q.append(sequence.last)
        starts_k.append(starts_k[-1] + sequence.length)
    slots = table = None
    if kind == GATHERED:
        within = torch.arange(block_size)
        rows = [(s.blocks.unsqueeze(1) * block_size + within).flatten()[: s.length] for s in sequences]
        slots = torch.cat(rows).to(device)
    else:
        most = max(s.blocks.numel() for s in sequences)
        filled = torch.zeros(len(sequences), most, dtype=torch.int32)
        for i, sequence in enumerate(sequences):
            filled[i, : sequence.blocks.numel()] = sequence.blocks.to(torch.int32)
        table = filled.to(device)
    return Packed(
        slots,
        torch.tensor(starts_q, dtype=torch.int32).to(device),
        torch.tensor(starts_k, dtype=torch.int32).to(device),
        torch.tensor([s.length for s in sequences], dtype=torch.int32).to(device),
        table,
        max(s.last - s.first for s in sequences),
        max(s.length for s in sequences),
    )


def attend(
    query: torch.Tensor, layer: torch.Tensor, packed: Packed, scaling: float | None, sliding_window: int | None
) -> torch.Tensor:
    """query `[T, heads, d]`, layer `[2, blocks, block_size, kv_heads, d]`; returns `[T, heads, d]`.

    Causal: the last query of a sequence is its last key. `sliding_window` counts the query's own key.
    """
    from torch.nn.attention.varlen import varlen_attn

    more: dict[str, object] = {}
    if "enable_gqa" in parameters():
        more["enable_gqa"] = True
    if packed.table is not None:
        keys, values = layer[0], layer[1]
        more |= {"seqused_k": packed.lengths, "block_table": packed.table}
    else:
        assert packed.slots is not None
        flat = layer.flatten(1, 2)
        keys, values = flat[0].index_select(0, packed.slots), flat[1].index_select(0, packed.slots)
    out = varlen_attn(
        query.contiguous(),
        keys,
        values,
        packed.starts_q,
        packed.starts_k,
        packed.longest_q,
        packed.longest_k,
        scale=scaling,
        window_size=(-1 if sliding_window is None else sliding_window - 1, 0),
        **more,  # type: ignore[arg-type]
    )
    assert isinstance(out, torch.Tensor)
    return out


def verify(kind: str, *, heads: int, kv_heads: int, head_dim: int, block_size: int, dtype: torch.dtype,
           device: torch.device) -> str | None:  # fmt: skip
    """Try `kind` on a small batch against plain arithmetic; None if it is right, else what is wrong.

    A prefill, a later chunk and a decode: where a version aligns its causal mask otherwise, the last two differ.
    """
    from ghostserve.engine.attention import SequenceView

    generator = torch.Generator().manual_seed(7)
    blocks = 6
    layer = torch.randn(2, blocks, block_size, kv_heads, head_dim, generator=generator).to(dtype)
    order = torch.tensor([4, 1, 3])
    used = torch.zeros(blocks, block_size, dtype=torch.bool)
    used[order[:2]] = True
    used[order[2], :4] = True
    layer[:, ~used] = float("nan")  # as fresh cache memory is: it must not be touched by any sequence
    sequences, first = [], 0
    for count, start in ((5, 0), (7, block_size), (1, 2 * block_size + 3)):
        sequences.append(SequenceView(first, first + count, start, order[: -(-(start + count) // block_size)]))
        first += count
    query = torch.randn(first, heads, head_dim, generator=generator).to(dtype)
    try:
        packed = pack(kind, sequences, block_size, device)
        assert packed is not None
        found = attend(query.to(device), layer.to(device), packed, None, None).float().cpu()
    except (RuntimeError, TypeError, ValueError) as error:
        return f"{kind} failed: {str(error).splitlines()[0]}"
    if not bool(found.isfinite().all()):
        return f"{kind} reads slots that no sequence has"
    worst = 0.0
    for s in sequences:
        flat = layer.float()[:, s.blocks].flatten(1, 2)[:, : s.length].repeat_interleave(heads // kv_heads, 2)
        scores = torch.einsum("qhd,khd->hqk", query[s.first : s.last].float(), flat[0]) * head_dim**-0.5
        past = torch.arange(s.length) <= torch.arange(s.start, s.length).unsqueeze(1)
        weights = scores.masked_fill(~past, float("-inf")).softmax(-1)
        wanted = torch.einsum("hqk,khd->qhd", weights, flat[1])
        worst = max(worst, float((found[s.first : s.last] - wanted).abs().max()))
    # Values are about 1 and bfloat16 keeps 8 bits of them; a mask that is off by one token is off by far more.
    return None if worst < 0.06 else f"{kind} is off by {worst:.3g} from plain arithmetic"
