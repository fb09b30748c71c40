"""The paged attention, sequence by sequence, beside the sum as it is written in papers."""

from types import SimpleNamespace

import pytest
import torch

from ghostserve.engine.attention import PagedBatch, PagedKV, SequenceView, paged_attention

HEADS, SIZE, BLOCK, BLOCKS = 6, 8, 4, 12


def naive(query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, at: int, window: int | None) -> torch.Tensor:
    """query `[d]` at position `at`; keys and values `[length, d]`; in double precision."""
    first = 0 if window is None else max(0, at + 1 - window)
    scores = keys[first : at + 1].double() @ query.double() / SIZE**0.5
    return (torch.softmax(scores, 0) @ values[first : at + 1].double()).float()


@pytest.mark.parametrize("window", [None, 5], ids=["whole", "window"])
@pytest.mark.parametrize("kv_heads", [1, 2, 3, 6])
@pytest.mark.parametrize(("start", "count"), [(0, 1), (16, 1), (17, 1), (0, 7), (9, 7)])
def test_every_head_attends_over_its_own_keys(start: int, count: int, kv_heads: int, window: int | None) -> None:
    torch.manual_seed(start + kv_heads)
    cache = torch.full((1, 2, BLOCKS, BLOCK, kv_heads, SIZE), float("nan"))
    blocks = torch.randperm(BLOCKS)[: (start + count + BLOCK - 1) // BLOCK]
    slots = torch.tensor([int(blocks[p // BLOCK]) * BLOCK + p % BLOCK for p in range(start + count)])
    keys, values = torch.randn(2, start + count, kv_heads, SIZE)
    cache[0].flatten(1, 2)[:, slots[:start]] = torch.stack([keys, values])[:, :start]
    query = torch.randn(1, HEADS, count, SIZE)
    batch = PagedBatch(PagedKV(cache), slots[start:], (SequenceView(0, count, start, blocks),))
    new_keys, new_values = (rows[start:].transpose(0, 1).unsqueeze(0) for rows in (keys, values))
    module = SimpleNamespace(layer_idx=0, is_causal=True)
    out, _ = paged_attention(module, query, new_keys, new_values, None, paged=batch, sliding_window=window)  # type: ignore[arg-type]
    for row in range(count):
        for head in range(HEADS):
            shared = head * kv_heads // HEADS
            wanted = naive(query[0, head, row], keys[:, shared], values[:, shared], start + row, window)
            torch.testing.assert_close(out[0, row, head], wanted, atol=1e-5, rtol=1e-5)
