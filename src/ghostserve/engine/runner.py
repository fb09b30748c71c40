"""Runs step plans on one rank: from a plan to tensors, through the model, to sampled tokens.

Tokens are drawn on the host, on every device: one sampler, and a replay draws the same bits wherever it runs.
"""

import math

import torch

from ghostserve.engine.attention import PagedBatch, PagedKV, SequenceView
from ghostserve.engine.messages import Sampled, StepPlan
from ghostserve.engine.model import ShardedModel
from ghostserve.engine.modelspec import ModelSpec
from ghostserve.engine.sampler import sample
from ghostserve.engine.varlen import SDPA, pack

__all__ = ["StepRunner", "kv_tensor"]


def kv_tensor(arena: torch.Tensor, spec: ModelSpec) -> torch.Tensor:
    """The arena's bytes, uint8, as `[layers, 2, blocks, block_size, kv_heads, head_dim]`; shares the memory."""
    shape = (spec.num_layers, 2, spec.num_blocks, spec.block_size, spec.kv_heads_per_rank, spec.head_dim)
    count = math.prod(shape) * spec.torch_dtype.itemsize
    return arena[:count].view(spec.torch_dtype).view(shape)


class StepRunner:
    """Knows nothing of requests: a plan carries all that a step needs, so running it again is replay."""

    def __init__(self, spec: ModelSpec, model: ShardedModel, arena: torch.Tensor, attention: str = SDPA) -> None:
        """`arena`: this rank's KV cache, uint8, on the device where the model is; `attention`: see `varlen.choose`."""
        self._block_size = spec.block_size
        self._model = model
        self._device = arena.device
        self._attention = attention
        self._kv = PagedKV(kv_tensor(arena, spec))

    def run(self, plan: StepPlan) -> tuple[Sampled, ...]:
        """The tokens drawn on rank 0, nothing on the others. Raises `CommunicatorError` if a peer dies.

        When it returns the step is done on the device, and under an epoch that still counts.
        """
        if not plan.parts:
            return ()  # a step that only flushes
        tokens: list[int] = []
        positions: list[int] = []
        slots: list[int] = []
        rows: list[int] = []
        sequences: list[SequenceView] = []
        size = self._block_size
        device = self._device
        # One call of varlen attention takes all tables in one piece, made on the host.
        tables = device if self._attention == SDPA else torch.device("cpu")
        for part in plan.parts:
            first, stop = len(tokens), part.start + len(part.token_ids)
            tokens += part.token_ids
            positions += range(part.start, stop)
            slots += (part.blocks[p // size] * size + p % size for p in range(part.start, stop))
            used = torch.tensor(part.blocks[: -(-stop // size)], dtype=torch.int64, device=tables)
            sequences.append(SequenceView(first, len(tokens), part.start, used))
            if part.draw is not None:
                rows.append(len(tokens) - 1)
        packed = pack(self._attention, sequences, size, device)
        batch = PagedBatch(self._kv, torch.tensor(slots, device=device), tuple(sequences), packed)
        logits = self._model.logits(
            torch.tensor(tokens, device=device),
            torch.tensor(positions, device=device),
            batch,
            torch.tensor(rows, dtype=torch.int64, device=device),
        )
        self._model.settle()
        drawn = [part for part in plan.parts if part.draw is not None]
        if logits.shape[0] != len(drawn):
            return ()  # another rank than 0
        logits = logits.cpu()
        return tuple(
            sample(logits[i], part.request_id, part.draw) for i, part in enumerate(drawn) if part.draw is not None
        )
