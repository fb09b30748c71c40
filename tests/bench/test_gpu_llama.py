"""The rank that plays the model: what it writes into the paged cache, and that it attends over it."""

import torch

from ghostserve.bench.gpu.llama import LlamaRank, RankShape
from ghostserve.bench.gpu.shapes import CacheShape

CACHE = CacheShape("toy", layers=2, row_bytes=2 * 16 * 2, ranks=2, block_size=4)
SHAPE = RankShape(CACHE, hidden=32, heads=4, kv_heads=2, head_dim=16, intermediate=48, vocabulary=64)
BLOCKS = 8


def rank(device):
    cache = torch.zeros(CACHE.layout(BLOCKS).total_bytes, dtype=torch.uint8, device=device)
    return LlamaRank(SHAPE, cache, positions=32), cache


def test_chunks_make_no_difference(device):
    tokens = torch.arange(12, device=device) * 5 % 64
    whole, cache = rank(device)
    expected = whole.prefill(tokens, 0)
    cut, other = rank(device)
    cut.prefill(tokens[:8], 0)
    found = cut.prefill(tokens[8:], 8)
    assert torch.equal(found, expected)
    # Chunks of other sizes round differently in bf16, a wrong mask or position would be far off.
    assert torch.allclose(cache.view(torch.bfloat16).float(), other.view(torch.bfloat16).float(), atol=1e-2)
    assert cache.view(torch.bfloat16)[: 12 * 32].abs().sum() > 0


def test_a_decode_step_writes_one_slot_of_each_sequence(device):
    model, _ = rank(device)
    model.kv.normal_()
    before = model.kv.clone()
    positions = torch.tensor([3, 14], device=device)
    tokens = model.decode(torch.tensor([1, 2], device=device), positions, context=16)
    changed = (model.kv != before).flatten(3).any(dim=3)  # layer, K|V, slot
    assert changed.nonzero()[:, 2].unique().tolist() == [3, 30]
    assert changed.sum() == 2 * 2 * 2
    assert tokens.shape == (2,)
    # It attends: other keys, other tokens or at least other logits of the next layer's values.
    written = model.kv[1, 1, 3].clone()
    model.kv[0, 1, 5] += 3
    model.decode(torch.tensor([1, 2], device=device), positions, context=16)
    assert not torch.equal(model.kv[1, 1, 3], written)


def test_weights_are_counted(device):
    model, _ = rank(device)
    tensors = [model.embedding, model.head, *(t for layer in model.layers for t in vars(layer).values())]
    assert SHAPE.weight_bytes == sum(t.nbytes for t in tensors)
