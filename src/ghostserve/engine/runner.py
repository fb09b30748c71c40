"""Runs step plans on one rank: from a plan to tensors, through the model, to sampled tokens."""

import numpy as np
import torch

from ghostserve.engine.attention import PagedBatch, PagedKV, SequenceView
from ghostserve.engine.messages import Sampled, StepPlan
from ghostserve.engine.model import ShardedModel
from ghostserve.engine.modelspec import ModelSpec
from ghostserve.engine.sampler import sample

__all__ = ["StepRunner", "kv_tensor"]


def kv_tensor(arena: np.ndarray, spec: ModelSpec) -> torch.Tensor:
    """The arena's bytes as `[layers, 2, blocks, block_size, kv_heads, head_dim]`; shares the memory."""
    shape = (spec.num_layers, 2, spec.num_blocks, spec.block_size, spec.kv_heads_per_rank, spec.head_dim)
    count = int(np.prod(shape)) * spec.torch_dtype.itemsize
    return torch.from_numpy(arena[:count]).view(spec.torch_dtype).view(shape)


class StepRunner:
    """Knows nothing of requests: a plan carries all that a step needs, so running it again is replay."""

    def __init__(self, spec: ModelSpec, model: ShardedModel, arena: np.ndarray) -> None:
        self._block_size = spec.block_size
        self._model = model
        self._kv = PagedKV(kv_tensor(arena, spec))

    def run(self, plan: StepPlan) -> tuple[Sampled, ...]:
        """The tokens drawn on rank 0, nothing on the others. Raises `CommunicatorError` if a peer dies."""
        if not plan.parts:
            return ()  # a step that only flushes
        tokens: list[int] = []
        positions: list[int] = []
        slots: list[int] = []
        rows: list[int] = []
        sequences: list[SequenceView] = []
        size = self._block_size
        for part in plan.parts:
            first, stop = len(tokens), part.start + len(part.token_ids)
            tokens += part.token_ids
            positions += range(part.start, stop)
            slots += (part.blocks[p // size] * size + p % size for p in range(part.start, stop))
            used = torch.tensor(part.blocks[: -(-stop // size)], dtype=torch.int64)
            sequences.append(SequenceView(first, len(tokens), part.start, used))
            if part.draw is not None:
                rows.append(len(tokens) - 1)
        batch = PagedBatch(self._kv, torch.tensor(slots), tuple(sequences))
        logits = self._model.logits(
            torch.tensor(tokens), torch.tensor(positions), batch, torch.tensor(rows, dtype=torch.int64)
        )
        drawn = [part for part in plan.parts if part.draw is not None]
        if logits.shape[0] != len(drawn):
            return ()  # another rank than 0
        return tuple(
            sample(logits[i], part.request_id, part.draw) for i, part in enumerate(drawn) if part.draw is not None
        )
