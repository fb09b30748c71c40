"""Moving the KV caches that vLLM has allocated into one region of shared memory, under views that look the same."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch

from ghostserve.errors import UnsupportedModelError
from ghostserve.parity.memory import SharedRegion

__all__ = ["AdoptedCaches", "adopt"]

# Storages begin on pages, which is what vLLM's own allocation gave the kernels, and more.
ALIGNMENT = 4096
# Copied in pieces of this many bytes, and only those that hold something.
PIECE = 1 << 20


@dataclass(frozen=True)
class AdoptedCaches:
    """A rank's KV caches in shared memory.

    `tensors`: for each name that was given, a view of `region` with the shape, dtype, strides and content of the old
    tensor; it keeps the region mapped. `offsets`: the byte of `region` where that view's first element lies.
    """

    region: SharedRegion
    tensors: dict[str, torch.Tensor]
    offsets: dict[str, int]


def adopt(label: str, caches: Mapping[str, object]) -> AdoptedCaches:
    """Copy the storages of `caches` into a fresh region named `label`, one after another.

    `caches`: layer name -> KV tensor in host memory, of shape [num_blocks, ...]. Tensors that share a storage (vLLM
    puts all layers into one; several layers can have one cache) share it afterwards as well. The old memory is given
    back when the caller has replaced the last tensor that lies there.

    Raises `UnsupportedModelError`, with the layer's name, for a cache that is no single tensor in host memory (the
    state of Mamba layers) or that has another number of blocks than the first one, or if there are none, and
    `MemoryBudgetError` when the host has too little memory.
    """
    tensors = dict(_checked(caches))
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage() for tensor in tensors.values()}
    places: dict[int, int] = {}
    end = 0
    for pointer, storage in storages.items():
        places[pointer] = end
        end += -(-storage.nbytes() // ALIGNMENT) * ALIGNMENT
    region = SharedRegion.create(label, end)
    memory = torch.from_numpy(region.array)
    for pointer, storage in storages.items():
        _copy(torch.empty(0, dtype=torch.uint8).set_(storage), memory[places[pointer] :])
    offsets = {
        name: places[tensor.untyped_storage().data_ptr()] + int(tensor.storage_offset()) * tensor.itemsize
        for name, tensor in tensors.items()
    }
    views = {
        name: memory.view(tensor.dtype).as_strided(tensor.shape, tensor.stride(), offsets[name] // tensor.itemsize)
        for name, tensor in tensors.items()
    }
    return AdoptedCaches(region, views, offsets)


def _checked(caches: Mapping[str, object]) -> Iterator[tuple[str, torch.Tensor]]:
    if not caches:
        raise UnsupportedModelError("this model has no KV cache: there is nothing to protect")
    first: tuple[str, int] | None = None
    for name, cache in caches.items():
        if not isinstance(cache, torch.Tensor):
            raise UnsupportedModelError(
                f"the cache of {name} is a {type(cache).__name__}, not one tensor: only attention's paged KV cache can "
                f"be protected, not the state of Mamba and other recurrent layers"
            )
        if cache.device.type != "cpu" or cache.ndim == 0 or cache.numel() == 0:
            raise UnsupportedModelError(
                f"the cache of {name} has shape {tuple(cache.shape)} and lies on {cache.device}: "
                f"it must be paged, not empty, and in host memory"
            )
        first = first or (name, cache.shape[0])
        if cache.shape[0] != first[1]:
            raise UnsupportedModelError(
                f"the cache of {name} has {cache.shape[0]} blocks, the one of {first[0]} has {first[1]}: "
                f"all layers must have the same number of blocks"
            )
        yield name, cache


def _copy(source: torch.Tensor, target: torch.Tensor) -> None:
    """Copy uint8 `source` to the beginning of `target`, which holds zeros."""
    for start in range(0, source.numel(), PIECE):
        piece = source[start : start + PIECE]
        # A page takes no memory before it is written to, and a fresh cache is gigabytes of zeros.
        if piece.any():
            target[start : start + piece.numel()] = piece
