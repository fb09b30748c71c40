"""Paged caches on the device with known bytes, and their slots taken out for comparing."""

import numpy as np
import torch
from numpy.typing import NDArray

from ghostserve.bench.gpu.device import require_device_memory
from ghostserve.bench.gpu.shapes import CacheShape
from ghostserve.cuda.shards import PagedShard
from ghostserve.parity.geometry import CacheLayout

__all__ = ["POISON", "Caches", "fill", "host", "random_bytes", "take_slots"]

POISON = 0xA5
_FILL_BYTES = 1 << 30  # at a time: what the random generator takes on the way stays small


class Caches:
    """`count` paged caches of one shape with random bytes, then `spare` ones with poison; uint8 (total_bytes,) each."""

    def __init__(
        self, shape: CacheShape, num_blocks: int, count: int, spare: int, device: torch.device, seed: int
    ) -> None:
        """Raises `DeviceMemoryError` where the device has no room."""
        self.shape, self.layout = shape, shape.layout(num_blocks)
        require_device_memory(
            device, (count + spare) * self.layout.total_bytes, f"{count + spare} caches of {shape.name}"
        )
        generator = torch.Generator(device).manual_seed(seed)
        self.tensors = [random_bytes(self.layout.total_bytes, generator) for _ in range(count)]
        self.spares = [
            torch.full((self.layout.total_bytes,), POISON, dtype=torch.uint8, device=device) for _ in range(spare)
        ]

    def shard(self, tensor: torch.Tensor) -> PagedShard:
        """Where the kernels find this cache."""
        return PagedShard.of_arena(self.layout, tensor.data_ptr())

    def slots(self, tensor: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        """See `take_slots`."""
        return take_slots(tensor, self.layout, index)


def random_bytes(nbytes: int, generator: torch.Generator) -> torch.Tensor:
    """uint8 (nbytes,) on the generator's device; never zeros: those are faster than what a model writes."""
    data = torch.empty(nbytes, dtype=torch.uint8, device=generator.device)
    fill(data, generator)
    return data


def fill(data: torch.Tensor, generator: torch.Generator) -> None:
    """Random bytes for uint8 `data`, of one dimension."""
    for first in range(0, len(data), _FILL_BYTES):
        data[first : first + _FILL_BYTES].random_(0, 256, generator=generator)


def take_slots(tensor: torch.Tensor, layout: CacheLayout, index: torch.Tensor) -> torch.Tensor:
    """The bytes of the slots of `index`, int (S, >= 2): block, slot; token-major, uint8 (S, slot_bytes).

    `tensor`: uint8 (total_bytes,) of a `CacheLayout.layered`. PyTorch's own indexing: independent of the kernels, and
    faster than the arenas' copies, of which each takes one row of one layer.
    """
    rows = tensor.view(-1, layout.num_blocks, layout.block_size, layout.segments[0].nbytes)
    found = rows[:, index[:, 0].long(), index[:, 1].long()]
    return found.transpose(0, 1).reshape(len(index), layout.slot_bytes)


def host(data: torch.Tensor) -> NDArray[np.uint8]:
    """A copy in host memory, for the CPU's codes."""
    copy: NDArray[np.uint8] = data.cpu().numpy()
    return copy
