"""The CPU's collectives through shared memory that a survivor can be let go from.

vLLM's own spin for ever on a peer that died; torch.distributed's come back, but take a millisecond each, many times a
step. Here a rank writes its part where all can read it, then counts up, and waits for its peers' counters. Whoever
leaves, or is told that the epoch is over, marks the memory as broken: that ends every wait on it.
"""

import os
import platform
import time
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist

from ghostserve.errors import GhostServeError
from ghostserve.parity.memory import SharedRegion

__all__ = ["BrokenGroupError", "SharedReduce", "meet"]

PART_BYTES = 1 << 20
"""What a rank hands over at a time: small enough for the processor's cache."""
_LINE = 8  # words: each counter has a cache line of its own
_YIELDS = 64
"""So often a wait offers its core to others before it sleeps."""
_NAP_SECONDS = 20e-6
# A rank's bytes must be seen before its counter is: other processors may show them the other way round.
_ORDERED = ("x86_64", "AMD64")


class BrokenGroupError(GhostServeError):
    """A peer has left, or the epoch is over: what this collective was for is not wanted any more."""


class SharedReduce:
    """One rank's end of a group's memory. `break_off` is for any thread, all else for the one that computes.

    Every rank calls the same collectives in the same order with tensors of the same shape and type. It has the
    interface of torch.distributed as far as vLLM's CpuCommunicator uses that.
    """

    def __init__(self, region: SharedRegion, rank: int, world_size: int) -> None:
        """`region`: of `nbytes(world_size)`, zero at first, shared by all ranks; closed by `close`."""
        self.rank, self.world_size = rank, world_size
        self._region = region
        head = (world_size + 1) * _LINE * 8
        # memoryviews: reading one word of numpy's arrays takes five times as long.
        self._words = memoryview(region.array[:head].data).cast("q")
        self._parts = torch.from_numpy(region.array[head:].reshape(2, world_size, PART_BYTES))
        self._count = 0
        self._broken_at = world_size * _LINE

    @staticmethod
    def nbytes(world_size: int) -> int:
        """Counters, the mark, and two parts a rank: one is written while peers may still read the other."""
        return (world_size + 1) * _LINE * 8 + 2 * world_size * PART_BYTES

    def break_off(self) -> None:
        """End all waits of all ranks, now and from now on."""
        if self._words:
            self._words[self._broken_at] = 1

    def close(self) -> None:
        """Break off, and give the memory back. Idempotent."""
        self.break_off()
        self._words = memoryview(b"")
        self._parts = torch.empty(0, dtype=torch.uint8)
        self._region.close()

    # ---- as torch.distributed

    def all_reduce(self, tensor: torch.Tensor, group: Any = None) -> None:
        """Sum in place, in the order of ranks on every rank: all get the same bits."""
        flat = tensor.view(-1) if tensor.is_contiguous() else tensor.reshape(-1)
        for first, parts in self._exchange(flat):
            _sum(parts, flat[first : first + parts.shape[1]])
        if flat.data_ptr() != tensor.data_ptr():
            tensor.copy_(flat.view_as(tensor))

    def all_gather_into_tensor(self, output: torch.Tensor, tensor: torch.Tensor, group: Any = None) -> None:
        """All ranks' tensors one after the other."""
        rows = output.view(self.world_size, -1)
        for first, parts in self._exchange(tensor.reshape(-1)):
            rows[:, first : first + parts.shape[1]].copy_(parts)

    def gather(
        self, tensor: torch.Tensor, gather_list: Sequence[torch.Tensor] | None, dst: int = 0, group: Any = None
    ) -> None:
        """All ranks' tensors, to the one that brings `gather_list`."""
        targets = [one.view(-1) for one in gather_list or ()]
        for first, parts in self._exchange(tensor.reshape(-1)):
            for target, part in zip(targets, parts, strict=False):
                target[first : first + parts.shape[1]].copy_(part)

    # ----

    def _exchange(self, flat: torch.Tensor) -> Iterator[tuple[int, torch.Tensor]]:
        """Pieces of `flat` that all ranks have handed over: where one begins, and all ranks' (world_size, S).

        Two parts a rank are enough: who writes a part again has seen all peers' counters of the piece between, and
        these count up only when they have read the one before.
        """
        most = PART_BYTES // flat.element_size()
        for first in range(0, flat.numel(), most):
            piece = flat[first : first + most]
            self._count += 1
            nbytes = piece.numel() * piece.element_size()
            parts = self._parts[self._count % 2, :, :nbytes].view(piece.dtype)
            parts[self.rank].copy_(piece)
            self._words[self.rank * _LINE] = self._count
            for peer in range(self.world_size):
                self._await(peer)
            yield first, parts

    def _await(self, peer: int) -> None:
        words, at, count, tries = self._words, peer * _LINE, self._count, 0
        while words[at] < count:
            if words[self._broken_at]:
                raise BrokenGroupError(f"the group of rank {self.rank} broke off in its collective {count}")
            tries += 1
            if tries < _YIELDS:
                os.sched_yield()
            else:
                time.sleep(_NAP_SECONDS)


def _sum(parts: torch.Tensor, target: torch.Tensor) -> None:
    """Rank after rank; 16-bit floats in 32 bits, rounded once. (`torch.sum` takes up to ten times as long.)"""
    total = parts[0].float() if target.dtype in (torch.bfloat16, torch.float16) else target.copy_(parts[0])
    for part in parts[1:]:
        total.add_(part)
    if total is not target:
        target.copy_(total)


def meet(group: Any) -> SharedReduce | None:
    """The memory of `group`, a vLLM coordinator, all of whose ranks call this; None where any of them can't map it.

    Raises `RuntimeError` if a rank does not come.
    """
    size, rank, first = group.world_size, group.rank_in_group, group.ranks[0]
    region: SharedRegion | None = None
    nbytes = SharedReduce.nbytes(size)
    where = torch.zeros(2, dtype=torch.int64)
    if rank == 0 and platform.machine() in _ORDERED:
        region = SharedRegion.create("ghostserve-reduce", nbytes)
        where = torch.tensor([os.getpid(), region.fd])
    try:
        dist.broadcast(where, src=first, group=group.cpu_group)
        pid, fd = where.tolist()
        if rank and pid:
            region = _mapped(pid, fd, nbytes)
        mapped = torch.tensor([region is not None], dtype=torch.int64)
        # Also: the first rank keeps the descriptor until all have opened it.
        dist.all_reduce(mapped, op=dist.ReduceOp.MIN, group=group.cpu_group)
    except BaseException:
        if region is not None:
            region.close()
        raise
    if region is None:
        return None
    if not int(mapped):
        region.close()
        return None
    return SharedReduce(region, rank, size)


def _mapped(pid: int, fd: int, nbytes: int) -> SharedRegion | None:
    """Another process's region, by its descriptor there; None if that may not be opened (other namespaces, hidepid)."""
    try:
        own = os.open(f"/proc/{pid}/fd/{fd}", os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        return SharedRegion.attach(own, nbytes)
    finally:
        os.close(own)
