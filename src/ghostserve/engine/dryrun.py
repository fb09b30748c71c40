"""One forward pass without weights or peers: a model that the engine can't run is refused before it starts."""

import torch

from ghostserve.engine.attention import PagedBatch, PagedKV, SequenceView
from ghostserve.engine.communicator import Communicator
from ghostserve.engine.model import ShardedModel
from ghostserve.engine.modelspec import ModelSpec
from ghostserve.errors import GhostServeError, UnsupportedModelError

__all__ = ["check_forward"]


class _Alone(Communicator):
    """Rank 0 of a group whose others do not exist: shapes are right, values mean nothing."""

    def __init__(self, world_size: int) -> None:
        super().__init__(world_size)
        self.rank = 0

    def _run(self, collective: object) -> None:
        return


def check_forward(spec: ModelSpec) -> None:
    """Run a prefill of two tokens and a decode of one, as rank 0 of a group without others.

    Raises `UnsupportedModelError` with what went wrong: heads that a model counts for itself, an attention that
    needs more than the paged one does, norms over all heads.
    """
    try:
        # Weights that nobody has written are pages that nobody has to hold.
        model = ShardedModel(spec, _Alone(spec.tensor_parallel_size))
        shape = (spec.num_layers, 2, 1, spec.block_size, spec.kv_heads_per_rank, spec.head_dim)
        cache = torch.zeros(shape, dtype=spec.torch_dtype)
        block = torch.zeros(1, dtype=torch.int64)
        tokens = torch.zeros(3, dtype=torch.int64)
        sequences = (SequenceView(0, 2, 0, block), SequenceView(2, 3, 0, block))
        logits = model.logits(tokens, tokens, PagedBatch(PagedKV(cache), tokens, sequences), tokens[:2])
        if tuple(logits.shape) != (2, spec.vocab_size):
            raise UnsupportedModelError(f"its logits have shape {list(logits.shape)}, not [2, {spec.vocab_size}]")
    except Exception as error:  # whatever a model does that sharding or paging breaks
        said = error if isinstance(error, GhostServeError) else repr(error)
        raise UnsupportedModelError(
            f"model_type {spec.model_type!r} can't be run on {spec.tensor_parallel_size} ranks: {said}"
        ) from error
