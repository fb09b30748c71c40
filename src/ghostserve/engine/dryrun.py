"""Forward passes without weights or peers: a model that can't be run is refused before it starts, and warm-up."""

import torch

from ghostserve.engine import exchange
from ghostserve.engine.attention import PagedBatch, PagedKV, SequenceView
from ghostserve.engine.communicator import Communicator, make_communicator
from ghostserve.engine.model import ShardedModel
from ghostserve.engine.modelspec import ModelSpec
from ghostserve.engine.varlen import SDPA, pack
from ghostserve.errors import GhostServeError, UnsupportedModelError

__all__ = ["check_forward", "rank_weight_bytes", "rehearse"]

_CPU = torch.device("cpu")


def check_forward(spec: ModelSpec) -> None:
    """Run a prefill of two tokens and a decode of one, as rank 0 of a group without others.

    Raises `UnsupportedModelError` with what went wrong: heads that a model counts for itself, an attention that
    needs more than the paged one does, norms over all heads.
    """
    try:
        # Weights that nobody has written are pages that nobody has to hold.
        communicator = make_communicator("cpu", spec.tensor_parallel_size)
        model = ShardedModel(spec, communicator)
        logits = _forward(model, communicator, _CPU, SDPA)
        if tuple(logits.shape) != (2, spec.vocab_size):
            raise UnsupportedModelError(f"its logits have shape {list(logits.shape)}, not [2, {spec.vocab_size}]")
    except Exception as error:  # whatever a model does that sharding or paging breaks
        said = error if isinstance(error, GhostServeError) else repr(error)
        raise UnsupportedModelError(
            f"model_type {spec.model_type!r} can't be run on {spec.tensor_parallel_size} ranks: {said}"
        ) from error


def rehearse(model: ShardedModel, communicator: Communicator, device: torch.device, attention: str) -> None:
    """Run the same two kinds of work on `device` with zeros for weights, so that every kernel is loaded there.

    Afterwards the model has no weights, as before, and their memory is given back.
    """
    model.place(device)
    try:
        _forward(model, communicator, device, attention)
        exchange.warm_up(model.spec.tensor_parallel_size, model.spec.torch_dtype, device)
        torch.cuda.current_stream(device).synchronize()
    finally:
        model.strip()
        torch.cuda.empty_cache()


def rank_weight_bytes(spec: ModelSpec) -> int:
    """Bytes of one rank's weights, each aligned as `WeightLayout` does; without making them."""
    with torch.device("meta"):
        return ShardedModel(spec, make_communicator("cpu", spec.tensor_parallel_size)).weight_layout.nbytes


def _forward(model: ShardedModel, communicator: Communicator, device: torch.device, attention: str) -> torch.Tensor:
    spec = model.spec
    shape = (spec.num_layers, 2, 1, spec.block_size, spec.kv_heads_per_rank, spec.head_dim)
    cache = torch.zeros(shape, dtype=spec.torch_dtype, device=device)
    block = torch.zeros(1, dtype=torch.int64)
    tokens = torch.zeros(3, dtype=torch.int64, device=device)
    sequences = [SequenceView(0, 2, 0, block), SequenceView(2, 3, 0, block)]
    packed = pack(attention, sequences, spec.block_size, device)
    if packed is None:
        sequences = [SequenceView(s.first, s.last, s.start, block.to(device)) for s in sequences]
    with communicator.alone():
        return model.logits(tokens, tokens, PagedBatch(PagedKV(cache), tokens, tuple(sequences), packed), tokens[:2])
