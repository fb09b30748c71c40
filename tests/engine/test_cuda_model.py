"""The model on a GPU in this process: the same greedy tokens as transformers' own generate on the CPU."""

import pytest
import tiny
import torch
from test_models import PROMPTS, TOKENS, generated

from ghostserve.engine import varlen
from ghostserve.engine.communicator import make_communicator
from ghostserve.engine.config import EngineConfig
from ghostserve.engine.messages import Draw, SequencePart, StepPlan
from ghostserve.engine.model import ShardedModel
from ghostserve.engine.modelspec import inspect_checkpoint
from ghostserve.engine.runner import StepRunner

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_one_rank(checkpoint, family: str) -> None:  # type: ignore[no-untyped-def]
    """float32: prefill in chunks of 25, then one token a step; run twice, bit for bit the same."""
    folder = checkpoint(family)
    device = torch.device("cuda", 0)
    spec = inspect_checkpoint(EngineConfig(model=folder, kv_cache_memory=1 << 22))
    model = ShardedModel(spec, make_communicator("cuda", 1))
    model.load(0, device)
    arena = torch.full((spec.cache_layout.total_bytes,), 0xFF, dtype=torch.uint8, device=device)
    runner = StepRunner(spec, model, arena)
    blocks = tuple(range(5, 5 + 10))
    draw = Draw(0.0, 1.0, 0, 0, 0, 2)
    for prompt in PROMPTS:
        runs = []
        for _ in range(2):
            tokens, done, drawn = list(prompt), 0, []
            while len(tokens) < len(prompt) + TOKENS:
                stop = min(done + 25, len(tokens))
                last = draw if stop == len(tokens) else None
                part = SequencePart("r", tuple(tokens[done:stop]), done, blocks[: -(-stop // 16)], last)
                sampled = runner.run(StepPlan(1, (part,)))
                tokens += [s.token_id for s in sampled]
                drawn += sampled
                done = stop
            runs.append(drawn)
        assert runs[0] == runs[1]
        assert tokens[len(prompt) :] == generated(folder, prompt)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    ("heads", "kv_heads", "head_dim", "block_size"), [(4, 1, 16, 16), (8, 2, 128, 16), (8, 8, 64, 256)]
)
def test_varlen_attention_is_right_where_it_is_chosen(
    dtype: torch.dtype, heads: int, kv_heads: int, head_dim: int, block_size: int
) -> None:
    kind, why = varlen.choose(
        device="cuda", dtype=dtype, head_dim=head_dim, block_size=block_size, accepts=varlen.parameters()
    )
    if kind == varlen.SDPA:
        pytest.skip(why)
    wrong = varlen.verify(
        kind,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        block_size=block_size,
        dtype=dtype,
        device=torch.device("cuda", 0),
    )
    assert wrong is None, f"the engine falls back to {varlen.SDPA}: {wrong}"
