"""The ranks' weights in host shared memory, each in one piece: a newcomer copies its own instead of reading files.

One anonymous shared region a rank, made by the coordinator. The first worker that loads a rank reads the files into it;
every later one finds it filled. It outlives the workers, and the device copies from it at the link's speed once it is
pinned there, which a standby does before it is needed.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from ghostserve.errors import MemoryBudgetError
from ghostserve.parity.limits import available_memory, format_bytes
from ghostserve.parity.memory import SharedRegion

__all__ = ["HostWeights", "WeightLayout", "create_regions"]

_ALIGNMENT = 256
_PAGE = 4096
_FILLED = 0x47534C4F_41444544
_SPARE = 1 << 30
"""Bytes of host memory that keeping weights leaves to everybody else."""


@dataclass(frozen=True)
class WeightLayout:
    """Where each weight lies in one buffer of `nbytes` bytes; `entries` name -> (offset, dtype, shape)."""

    entries: dict[str, tuple[int, torch.dtype, tuple[int, ...]]]
    nbytes: int

    @classmethod
    def of(cls, weights: Mapping[str, torch.Tensor]) -> "WeightLayout":
        """The weights one after the other, each at a multiple of 256 bytes."""
        entries, offset = {}, 0
        for name, weight in weights.items():
            entries[name] = (offset, weight.dtype, tuple(weight.shape))
            offset += -(-weight.numel() * weight.element_size() // _ALIGNMENT) * _ALIGNMENT
        return cls(entries, offset)

    def views(self, buffer: torch.Tensor) -> dict[str, torch.Tensor]:
        """Each weight as a view of `buffer`, uint8 `[nbytes]`."""
        views = {}
        for name, (offset, dtype, shape) in self.entries.items():
            count = math.prod(shape) * dtype.itemsize
            views[name] = buffer[offset : offset + count].view(dtype).view(shape)
        return views


def _region_bytes(nbytes: int) -> int:
    return -(-nbytes // _PAGE) * _PAGE + _PAGE  # the last page holds the mark


def create_regions(world_size: int, nbytes: int, *, reserved: int) -> list[SharedRegion]:
    """A region for `nbytes` bytes of weights a rank; `reserved` bytes are promised to others already.

    Raises `MemoryBudgetError` if the host has too little memory for all of them.
    """
    needed, available = world_size * _region_bytes(nbytes), available_memory() - reserved
    if needed + _SPARE > available:
        raise MemoryBudgetError(
            f"keeping the weights of {world_size} ranks needs {format_bytes(needed)} of host memory, and"
            f" {format_bytes(_SPARE)} to spare; {format_bytes(max(0, available))} are available",
            needed=needed,
            available=available,
        )
    regions: list[SharedRegion] = []
    try:
        for rank in range(world_size):
            regions.append(SharedRegion.create(f"ghostserve-weights-{rank}", _region_bytes(nbytes)))
    except BaseException:
        for region in regions:
            region.close()
        raise
    return regions


class HostWeights:
    """A worker's view of all ranks' regions."""

    def __init__(self, fds: Sequence[int], nbytes: int) -> None:
        """`fds` a rank's region each, as `create_regions` made them for `nbytes`."""
        self._nbytes = nbytes
        self._regions = [SharedRegion.attach(fd, _region_bytes(nbytes)) for fd in fds]

    def tensor(self, rank: int) -> torch.Tensor:
        """The weights of `rank` on the host, uint8 `[nbytes]`; shares the memory."""
        return torch.from_numpy(self._regions[rank].array)[: self._nbytes]

    def region(self, rank: int) -> SharedRegion:
        """The whole region of `rank`: what to pin."""
        return self._regions[rank]

    def copy_to(self, target: torch.Tensor, rank: int) -> None:
        """Copy the weights of `rank` to `target`, uint8 `[nbytes]`; returns when they are there."""
        target.copy_(self.tensor(rank))

    @property
    def ranks(self) -> range:
        return range(len(self._regions))

    def filled(self, rank: int) -> bool:
        """True once somebody has read all weights of `rank` into its region."""
        return bool(self._mark(rank)[0] == _FILLED)

    def mark_filled(self, rank: int) -> None:
        """After everything was written: whoever died in between has not said so, and the next one reads again."""
        self._mark(rank)[0] = _FILLED

    def _mark(self, rank: int) -> torch.Tensor:
        return torch.from_numpy(self._regions[rank].array)[-8:].view(torch.int64)
