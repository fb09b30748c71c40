"""Which attention is chosen and why, and what the variable-length one is given."""

import functools

import pytest
import torch

from ghostserve.engine.attention import PagedBatch, PagedKV, SequenceView, paged_attention
from ghostserve.engine.varlen import GATHERED, PAGED, SDPA, choose, pack, verify

OLD = frozenset({"query", "scale", "window_size"})
NEW = OLD | {"block_table", "seqused_k", "enable_gqa"}
GOOD = {"device": "cuda", "dtype": torch.bfloat16, "head_dim": 128, "block_size": 16, "accepts": OLD}


@pytest.mark.parametrize(
    ("changes", "kind", "why"),
    [
        ({}, GATHERED, "takes no block table"),
        ({"accepts": NEW}, GATHERED, "multiple of 256 tokens, these have 16"),
        ({"accepts": NEW, "block_size": 512}, PAGED, "large blocks"),
        ({"block_size": 512}, GATHERED, "takes no block table"),
        ({"device": "cpu"}, SDPA, "the device is cpu"),
        ({"accepts": frozenset()}, SDPA, "has no varlen_attn"),
        ({"accepts": frozenset({"is_causal"})}, SDPA, "has no varlen_attn with window_size"),
        ({"dtype": torch.float32}, SDPA, "the model is float32"),
        ({"dtype": torch.float16}, GATHERED, "takes no block table"),
        ({"head_dim": 320}, SDPA, "the model has 320"),
        ({"head_dim": 36}, SDPA, "the model has 36"),
    ],
)
def test_choice(changes: dict[str, object], kind: str, why: str) -> None:
    chosen, reason = choose(**GOOD | changes)  # type: ignore[arg-type]
    assert chosen == kind
    assert why in reason


SEQUENCES = (
    SequenceView(0, 5, 0, torch.tensor([7, 2])),
    SequenceView(5, 6, 9, torch.tensor([0, 3, 5])),
)


def test_gathered_slots_are_each_sequences_own_in_order() -> None:
    packed = pack(GATHERED, SEQUENCES, 4, torch.device("cpu"))
    assert packed is not None
    assert packed.slots is not None
    assert packed.slots.tolist() == [28, 29, 30, 31, 8, 0, 1, 2, 3, 12, 13, 14, 15, 20, 21]
    assert packed.starts_q.tolist() == [0, 5, 6]
    assert packed.starts_k.tolist() == [0, 5, 15]
    assert packed.lengths.tolist() == [5, 10]
    assert (packed.longest_q, packed.longest_k) == (5, 10)
    assert packed.table is None


def test_a_table_has_a_row_for_each_sequence() -> None:
    packed = pack(PAGED, SEQUENCES, 4, torch.device("cpu"))
    assert packed is not None
    assert packed.table is not None
    assert packed.table.tolist() == [[7, 2, 0], [0, 3, 5]]
    assert packed.table.dtype == torch.int32
    assert packed.slots is None


def test_sdpa_needs_nothing() -> None:
    assert pack(SDPA, SEQUENCES, 4, torch.device("cpu")) is None


def reference(  # type: ignore[no-untyped-def]
    query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, scale=None, window_size=(-1, -1), enable_gqa=False,
    seqused_k=None, block_table=None, lower_right=True,
):  # fmt: skip
    """`varlen_attn` in plain arithmetic, on the host."""
    out = torch.empty_like(query)
    for i in range(len(cu_seq_q) - 1):
        rows = slice(int(cu_seq_q[i]), int(cu_seq_q[i + 1]))
        if block_table is None:
            span = slice(int(cu_seq_k[i]), int(cu_seq_k[i + 1]))
            k, v = key[span], value[span]
        else:
            length = int(seqused_k[i])
            k, v = (pages[block_table[i].long()].flatten(0, 1)[:length] for pages in (key, value))
        groups = query.shape[1] // k.shape[1]
        k, v = (t.float().repeat_interleave(groups, 1) for t in (k, v))
        q = query[rows].float()
        scores = torch.einsum("qhd,khd->hqk", q, k) * (q.shape[-1] ** -0.5 if scale is None else scale)
        at = torch.arange(len(q)).unsqueeze(1) + (len(k) - len(q) if lower_right else 0)
        seen = torch.arange(len(k)) <= at
        if window_size[0] >= 0:
            seen &= torch.arange(len(k)) >= at - window_size[0]
        out[rows] = torch.einsum("hqk,khd->qhd", scores.masked_fill(~seen, float("-inf")).softmax(-1), v).to(out.dtype)
    return out


SIZES = {"heads": 4, "kv_heads": 2, "head_dim": 16, "dtype": torch.bfloat16, "device": torch.device("cpu")}


@pytest.mark.parametrize(("kind", "block_size"), [(GATHERED, 16), (PAGED, 256)])
def test_a_good_kernel_is_accepted_and_one_with_another_mask_is_not(
    monkeypatch: pytest.MonkeyPatch, kind: str, block_size: int
) -> None:
    varlen = pytest.importorskip("torch.nn.attention.varlen")
    monkeypatch.setattr(varlen, "varlen_attn", reference)
    assert verify(kind, block_size=block_size, **SIZES) is None  # type: ignore[arg-type]
    monkeypatch.setattr(varlen, "varlen_attn", functools.partial(reference, lower_right=False))
    wrong = verify(kind, block_size=block_size, **SIZES)  # type: ignore[arg-type]
    assert wrong is not None
    assert "is off by" in wrong

    def refuse(*args: object, **kwargs: object) -> None:
        raise RuntimeError("Paged KV cache block size must be divisible by 256\nC++ stack")

    monkeypatch.setattr(varlen, "varlen_attn", refuse)
    assert verify(kind, block_size=block_size, **SIZES) == (  # type: ignore[arg-type]
        f"{kind} failed: Paged KV cache block size must be divisible by 256"
    )


@pytest.mark.parametrize("window", [None, 6])
def test_the_same_attention_as_sequence_by_sequence(monkeypatch: pytest.MonkeyPatch, window: int | None) -> None:
    """Through transformers' interface: packed against scaled_dot_product_attention, with and without a window."""
    varlen = pytest.importorskip("torch.nn.attention.varlen")
    monkeypatch.setattr(varlen, "varlen_attn", reference)
    generator = torch.Generator().manual_seed(1)
    cache = torch.randn(1, 2, 8, 4, 2, 16, generator=generator)
    q = torch.randn(1, 4, 6, 16, generator=generator)
    k, v = (torch.randn(1, 2, 6, 16, generator=generator) for _ in range(2))
    module = torch.nn.Module()
    module.layer_idx = 0  # type: ignore[assignment]
    slots = torch.tensor([28, 29, 30, 31, 8, 21])
    found = []
    for packed in (None, pack(GATHERED, SEQUENCES, 4, torch.device("cpu"))):
        batch = PagedBatch(PagedKV(cache.clone()), slots, SEQUENCES, packed)
        found.append(paged_attention(module, q, k, v, None, paged=batch, sliding_window=window)[0])
    assert found[0].shape == found[1].shape
    assert torch.allclose(found[0], found[1], atol=1e-5)
