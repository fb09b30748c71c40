"""The sum over ranks that share devices: everyone sends everything to everyone, then each adds up for itself.

Processes that share a device have it in turns of some milliseconds. A ring hands partial sums on from rank to rank, and
each of its 2 (N - 1) hops waits for a round of turns; here one round is enough, for N / 2 times as many bytes. Measured
in docs/decisions/0010-sums-on-a-shared-gpu.md.
"""

import torch
import torch.distributed as dist

__all__ = ["PIECE_BYTES", "sum_by_exchange"]

PIECE_BYTES = 16 << 20
"""Of a tensor at a time: every rank holds N times as much meanwhile."""


def sum_by_exchange(tensor: torch.Tensor, world_size: int) -> None:
    """Put the sum over the default group's ranks into `tensor`, of any shape and floating dtype, in place.

    All ranks add in the same order, so all have the same bits. On the current stream, as any collective of torch's.
    Raises `ValueError` for a tensor that is not contiguous.
    """
    if not tensor.is_contiguous():
        raise ValueError(f"a tensor of strides {tensor.stride()} for {list(tensor.shape)}: it must be contiguous")
    for piece in torch.split(tensor.view(-1), PIECE_BYTES // tensor.element_size()):
        parts = piece.new_empty(world_size, piece.numel())
        dist.all_to_all(list(parts.unbind()), [piece] * world_size)
        torch.sum(parts, 0, out=piece)
