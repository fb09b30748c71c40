"""Where vLLM's attention keeps a slot's bytes, as the core's `CacheLayout`.

On CUDA shapes and strides say it. The CPU's kernels pack K and V inside a block as suits the instruction set, which
no stride shows: there the operation that fills the cache is asked, by watching which bytes it writes.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from ghostserve.errors import UnsupportedModelError
from ghostserve.parity.geometry import CacheLayout, Segment

__all__ = ["CpuAttentionOp", "WriteSlots", "probed_layout", "strided_layout"]

Tensors = Mapping[str, torch.Tensor]
Index = NDArray[np.int64]

# Every byte of a marker is this one: 0.747 in bfloat16 and float32, 1.81 in float16. None of these becomes, in any
# cache type, a number that has a byte like those of the background.
MARKER, BACKGROUND = 0x3F, 0xA5


class WriteSlots(Protocol):
    """An operation that fills a cache with the keys and values of tokens."""

    @property
    def dtype(self) -> torch.dtype:
        """Of keys and values, the model's; the cache's is another one where it is quantized."""

    def __call__(self, key: torch.Tensor, value: torch.Tensor, cache: torch.Tensor, slots: torch.Tensor) -> None:
        """Write tokens to `cache`.

        `key`, `value`: `dtype` (tokens, kv_heads, head_size); `cache`: (blocks, kv_heads, block_size, 2 * head_size);
        `slots`: int64 (tokens,), block * block_size + slot.
        """


@dataclass(frozen=True)
class CpuAttentionOp:
    """The operation with which vLLM's CPU backend fills a cache; see `WriteSlots`.

    `isa`: the layer's, as its metadata builder has set it; `dtype`: the model's; `kv_cache_dtype`: vLLM's setting of
    that name ("auto", "fp8_e4m3", ...).
    """

    isa: str
    dtype: torch.dtype
    kv_cache_dtype: str = "auto"

    def __call__(self, key: torch.Tensor, value: torch.Tensor, cache: torch.Tensor, slots: torch.Tensor) -> None:
        # Imported here: this file also serves CUDA, and only vLLM for the CPU has these kernels.
        from vllm.platforms import current_platform

        from vllm import _custom_ops

        current_platform.import_kernels()
        blocks, heads, block_size, _ = cache.shape
        keys, values = cache.view(blocks, heads, 2 * block_size, -1).chunk(2, dim=2)
        _custom_ops.cpu_attn_reshape_and_cache(
            key, value, keys, values, slots, self.isa, kv_cache_dtype=self.kv_cache_dtype
        )


def strided_layout(tensors: Tensors, offsets: Mapping[str, int]) -> CacheLayout:
    """The layout of caches whose slots are plain rows, as FlashAttention's on CUDA.

    `tensors`: layer name -> cache of shape [num_blocks, kv_heads, block_size, 2 * head_size], any strides, only looked
    at from outside; `offsets`: the byte of the arena where each begins. Both as the scheduler's block ids
    address them (the runner's `kv_caches`). Layers that share a cache count once. Rows that lie side by side, heads or
    K and V, become one segment.

    Raises `UnsupportedModelError`, with the layer's name, for a cache of another shape, or with other blocks than the
    first one's, or where layers lay out the same memory differently.
    """

    def rows(name: str) -> tuple[Segment, ...]:
        cache = tensors[name]
        block_stride, head, slot_stride, element = (step * cache.itemsize for step in cache.stride())
        starts = np.arange(cache.shape[1])[:, None] * head + np.arange(cache.shape[3]) * element
        found = np.unique(starts.reshape(-1, 1) + np.arange(cache.itemsize))
        return _segments(found, np.full_like(found, block_stride), np.full_like(found, slot_stride))

    return _layout(tensors, offsets, rows)


def probed_layout(tensors: Tensors, offsets: Mapping[str, int], ops: Mapping[str, WriteSlots]) -> CacheLayout:
    """The layout of caches whose packing only the operation that writes them knows, as the CPU's.

    `tensors`, `offsets`: see `strided_layout`; `ops`: each layer's operation, a `CpuAttentionOp`. It fills scratch
    memory of two blocks, one slot at a time; the caches themselves stay as they are. Layers of the same shape,
    strides, dtype and (equal) operation are probed once.

    Raises `UnsupportedModelError` as `strided_layout` does, and for an operation, named with its layer, that does not
    keep each byte of a slot at a fixed step from slot to slot and from block to block.
    """
    known: dict[object, tuple[Segment, ...]] = {}

    def rows(name: str) -> tuple[Segment, ...]:
        cache, op = tensors[name], ops[name]
        kind = (cache.shape[1:], cache.stride(), cache.dtype, op)
        if kind not in known:
            known[kind] = _probed(name, cache, op)
        return known[kind]

    return _layout(tensors, offsets, rows)


def _layout(tensors: Tensors, offsets: Mapping[str, int], rows: Callable[[str], tuple[Segment, ...]]) -> CacheLayout:
    """`rows`: the segments of a layer as if its cache began at byte 0."""
    if not tensors:
        raise UnsupportedModelError("this model has no KV cache: there is nothing to protect")
    first = next(iter(tensors))
    seen: dict[int, tuple[str, tuple[Segment, ...]]] = {}
    for name, cache in tensors.items():
        if cache.ndim != 4:
            raise UnsupportedModelError(
                f"the cache of {name} has shape {tuple(cache.shape)}: "
                f"only [num_blocks, kv_heads, block_size, 2 * head_size] can be protected"
            )
        blocks = (cache.shape[0], cache.shape[2])
        if blocks != (tensors[first].shape[0], tensors[first].shape[2]):
            raise UnsupportedModelError(
                f"the cache of {name} has {blocks[0]} blocks of {blocks[1]} slots, other than {first}: "
                f"{tensors[first].shape[0]} of {tensors[first].shape[2]}"
            )
        segments = rows(name)
        other, found = seen.setdefault(offsets[name], (name, segments))
        if found != segments:
            raise UnsupportedModelError(f"{other} and {name} lay the same cache memory out differently")
    num_blocks, _, block_size, _ = tensors[first].shape
    moved = (
        Segment(offset + s.offset, s.block_stride, s.slot_stride, s.nbytes)
        for offset, (_, segments) in seen.items()
        for s in segments
    )
    return CacheLayout(num_blocks, block_size, tuple(moved))


def _probed(name: str, cache: torch.Tensor, op: WriteSlots) -> tuple[Segment, ...]:
    _, _, block_size, _ = cache.shape
    slots = [np.sort(found) for found in _written(cache, op)]
    count = len(slots[0])
    if count == 0 or any(len(found) != count for found in slots):
        raise _refused(name, op, "a slot's bytes are not as many in every slot")
    # Byte j of a slot is the j-th from the beginning of the block: rows keep their order where they have fixed steps.
    at = np.stack(slots).reshape(2, block_size, count)
    if len(np.unique(at)) != at.size:
        raise _refused(name, op, "two slots share bytes")
    block_stride = at[1, 0] - at[0, 0]
    slot_stride = at[0, min(1, block_size - 1)] - at[0, 0]
    expected = at[0, 0] + np.arange(2)[:, None, None] * block_stride + np.arange(block_size)[:, None] * slot_stride
    if not np.array_equal(at, expected) or min(block_stride.min(), slot_stride.min()) < 0:
        raise _refused(name, op, "the steps from slot to slot, or from block to block, are not all the same")
    return _segments(at[0, 0], block_stride, slot_stride)


def _written(cache: torch.Tensor, op: WriteSlots) -> Iterator[Index]:
    """The bytes, from the beginning of a cache like `cache`, that `op` writes for each slot of two blocks."""
    _, heads, block_size, row = cache.shape
    shape = (2, heads, block_size, row)
    elements = 1 + sum((size - 1) * step for size, step in zip(shape, cache.stride(), strict=True))
    memory = torch.full((elements * cache.itemsize,), BACKGROUND, dtype=torch.uint8)
    scratch = memory.view(cache.dtype).as_strided(shape, cache.stride())
    marker = torch.full((heads * row // 2 * op.dtype.itemsize,), MARKER, dtype=torch.uint8)
    token = marker.view(op.dtype).view(1, heads, row // 2)
    content = memory.numpy()
    for slot in range(2 * block_size):
        op(token, token, scratch, torch.tensor([slot]))
        found = np.flatnonzero(content != BACKGROUND)
        content[found] = BACKGROUND
        yield found


def _segments(found: Index, block_stride: Index, slot_stride: Index) -> tuple[Segment, ...]:
    """The bytes of slot 0 of block 0, ascending, with each one's steps, as segments that are as long as can be."""
    steps = np.stack([block_stride, slot_stride], axis=1)
    begins = np.flatnonzero((np.diff(found, prepend=found[0] - 2) != 1) | _changes(steps))
    lengths = np.diff(begins, append=len(found))
    rows = zip(found[begins], steps[begins, 0], steps[begins, 1], lengths, strict=True)
    return tuple(Segment(int(a), int(b), int(s), int(n)) for a, b, s, n in rows)


def _changes(steps: Index) -> NDArray[np.bool_]:
    """Where a row differs from the one before it; the first one does not."""
    return np.concatenate([[False], (steps[1:] != steps[:-1]).any(axis=1)])


def _refused(name: str, op: WriteSlots, why: str) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"the cache of {name}, as {op} fills it, can't be protected: {why}. "
        f"Serve the model in float32 (--dtype float32), or on a host without AMX"
    )
