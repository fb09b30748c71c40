"""The sum over ranks that share devices: everyone sends everything to everyone, then each adds up for itself.

Processes that share a device have it in turns of a millisecond or two. A ring hands partial sums on from rank to rank,
and each of its 2 (N - 1) hops waits for a round of turns; here one round is enough, for N / 2 times as many bytes.
Measured in docs/decisions/0010-sums-on-a-shared-gpu.md.
"""

import torch
import torch.distributed as dist

__all__ = ["PIECE_BYTES", "exchange_bytes", "sum_by_exchange", "warm_up"]

PIECE_BYTES = 16 << 20
"""Of a tensor at a time."""


def exchange_bytes(world_size: int) -> int:
    """The most device memory that a rank takes for a sum, beside the tensor."""
    return world_size * PIECE_BYTES


def warm_up(world_size: int, dtype: torch.dtype, device: torch.device) -> None:
    """Load what adds parts up on `device`; no peers are needed."""
    torch.zeros(world_size, 4096, dtype=dtype, device=device).sum(0)


def sum_by_exchange(tensor: torch.Tensor, world_size: int, piece_bytes: int = PIECE_BYTES) -> None:
    """Put the sum over the default group's ranks into `tensor`, of any shape and floating dtype, in place.

    All ranks add in the same order, so all have the same bits. On the current stream, as any collective of torch's.
    Raises `ValueError` for a tensor that is not contiguous.
    """
    if not tensor.is_contiguous():
        raise ValueError(f"a tensor of strides {tensor.stride()} for {list(tensor.shape)}: it must be contiguous")
    for piece in torch.split(tensor.view(-1), piece_bytes // tensor.element_size()):
        parts = piece.new_empty(world_size, piece.numel())
        dist.all_to_all(list(parts.unbind()), [piece] * world_size)
        torch.sum(parts, 0, out=piece)
        del parts  # before the next ones are there
