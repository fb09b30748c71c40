"""Linear layers that hold one rank's part of the weight, by the styles of transformers' tensor-parallel plans.

A layer is built before its rank is known (a standby builds the model, then waits): `part(rank)` tells which slice of
the whole tensor a rank holds.
"""

import torch
from torch import nn
from torch.nn import functional

from ghostserve.engine.communicator import Communicator

__all__ = ["ColwiseLinear", "RowwiseLinear", "ShardedLinear", "VocabLinear"]


class ShardedLinear(nn.Module):
    """`axis` of the weight is cut into parts of `width`; `replicas` ranks in a row hold the same part."""

    axis: int

    def __init__(self, whole: nn.Linear, width: int, replicas: int = 1) -> None:
        super().__init__()
        self.width = width
        self.replicas = replicas
        shape = [whole.out_features, whole.in_features]
        shape[self.axis] = width
        self.weight = nn.Parameter(whole.weight.new_empty(shape), requires_grad=False)
        self.bias = None
        if whole.bias is not None:
            self.bias = nn.Parameter(whole.bias.new_empty(shape[0]), requires_grad=False)

    def part(self, rank: int, dimensions: int) -> tuple[slice, ...]:
        """The slice of the whole weight (2 dimensions) or bias (1) that `rank` holds."""
        first = rank // self.replicas * self.width
        cut = slice(first, first + self.width)
        if dimensions == 1:
            return (cut if self.axis == 0 else slice(None),)
        return (cut, slice(None)) if self.axis == 0 else (slice(None), cut)


class ColwiseLinear(ShardedLinear):
    """Some of the output features; the input is whole, the output is this rank's part."""

    axis = 0

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return functional.linear(hidden, self.weight, self.bias)


class RowwiseLinear(ShardedLinear):
    """Some of the input features; the parts are summed over the ranks, then the bias is added once."""

    axis = 1

    def __init__(self, whole: nn.Linear, width: int, communicator: Communicator) -> None:
        super().__init__(whole, width)
        self._communicator = communicator

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        out = self._communicator.all_reduce(functional.linear(hidden, self.weight))
        return out if self.bias is None else out + self.bias


class VocabLinear(ShardedLinear):
    """The language-model head's rows for a part of the vocabulary; rank 0 gets all logits, the others none.

    gloo gathers equal parts, so every rank computes the same number of columns; where the vocabulary does not divide,
    the last ones are padding (zeros) and are cut off.
    """

    axis = 0

    def __init__(self, whole: nn.Linear, communicator: Communicator) -> None:
        self.vocab = whole.out_features
        super().__init__(whole, -(-self.vocab // communicator.world_size))
        self._communicator = communicator

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """hidden `[1, rows, hidden]`; gives float32 `[1, rows, vocab]` on rank 0, `[1, 0, vocab]` elsewhere."""
        part = functional.linear(hidden[0], self.weight, self.bias).float()
        whole = self._communicator.gather_columns(part)
        if whole is None:
            return part.new_empty(1, 0, self.vocab)
        return whole[:, : self.vocab].unsqueeze(0)
