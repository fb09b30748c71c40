"""What `bench kernels` runs: codes over 8 data shards of a paged cache, encoding and rebuilding, on rotating blocks."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ghostserve.bench.gpu.ahead import LOST, SHARDS
from ghostserve.bench.gpu.caches import POISON, Caches, host, random_bytes
from ghostserve.bench.gpu.shapes import CacheShape
from ghostserve.bench.gpu.verify import WrongBytesError, check_plan
from ghostserve.codes.backend import Backend
from ghostserve.codes.base import Code, Plan
from ghostserve.cuda.kernels import Bound, Kernels
from ghostserve.cuda.shards import FlatShard

__all__ = ["Stage", "Work"]


@dataclass(frozen=True)
class Work:
    """One plan over the stage's shards. `traffic`: bytes that one launch must read and write."""

    name: str
    code: Code
    plan: Plan
    bound: Bound
    checksums: bool
    traffic: int


class Stage:
    """8 random caches, two poisoned ones to rebuild into, token-major parity, and `sets` of scattered blocks.

    The sets share no block and are launched in turns: what one launch reads is no longer in L2 when its turn comes
    again. Row r of the parity belongs to slot r of all sets together.
    """

    def __init__(self, shape: CacheShape, *, tokens: int, sets: int, spread: int, device: torch.device) -> None:
        """`tokens` a launch; `spread`: the cache has so many times the blocks that are used."""
        self.shape, self.tokens, self.sets, self.device = shape, tokens, sets, device
        blocks = shape.blocks(tokens)
        self.caches = Caches(shape, blocks * sets * spread, SHARDS, len(LOST), device, seed=shape.row_bytes)
        self.layout = self.caches.layout
        self.kernels = Kernels(self.layout, device)
        rng = np.random.default_rng(tokens)
        chosen = rng.permutation(self.layout.num_blocks)[: blocks * sets]
        index = np.empty((sets * blocks * shape.block_size, 3), dtype=np.int32)
        index[:, 0] = np.repeat(chosen, shape.block_size)
        index[:, 1] = np.tile(np.arange(shape.block_size), len(chosen))
        index[:, 2] = np.arange(len(index))
        self.index = torch.from_numpy(index).to(device).view(sets, -1, 3)
        generator = torch.Generator(device).manual_seed(1)
        # Random, too: the plan's outputs start from what they must not contain.
        self.parity = {
            k: random_bytes(len(index) * shape.slot_bytes, generator).view(len(index), shape.slot_bytes)
            for k in range(4)
        }

    @property
    def count(self) -> int:
        """Slots of one launch."""
        return self.index.shape[1]

    def shard(self, number: int, *, target: bool) -> tuple[Any, torch.Tensor]:
        """Where shard `number` lies, and its tensor; a lost data shard is written to a poisoned cache instead."""
        if number >= SHARDS:
            tensor = self.parity[number - SHARDS]
            return FlatShard(tensor.data_ptr(), self.shape.slot_bytes), tensor
        tensor = self.caches.spares[LOST.index(number)] if target else self.caches.tensors[number]
        return self.caches.shard(tensor), tensor

    def work(self, name: str, code: Code, plan: Plan, *, checksums: bool) -> Work:
        shards = [self.shard(s, target=False)[0] for s in plan.inputs]
        shards += [self.shard(s, target=True)[0] for s in plan.outputs]
        bound = self.kernels.bind(plan, shards, checksums=checksums)
        traffic = len(shards) * self.count * self.shape.slot_bytes
        return Work(name, code, plan, bound, checksums, traffic)

    def sums(self, work: Work, sets: int) -> torch.Tensor | None:
        """Room for the checksums of launches over all sets, zeroed; None if the work takes none."""
        if not work.checksums:
            return None
        positions = len(work.plan.inputs) + len(work.plan.outputs)
        return torch.zeros((sets, self.count, positions), dtype=torch.int64, device=self.device)

    def launch(self, work: Work, sums: torch.Tensor | None, *, programs: int | None = None) -> None:
        """Once over every set, on the current stream."""
        for number in range(self.sets):
            at = None if sums is None else sums[number]
            work.bound.launch(self.index[number], self.count, at, programs=programs)

    def check(self, work: Work, backend: Backend, *, samples: int, programs: int | None = None) -> None:
        """Run on poisoned outputs; compare `samples` slots a set with the CPU, all rebuilt ones with the originals.

        Raises `WrongBytesError` where a byte, a checksum, or a byte beside the outputs differs.
        """
        what = f"{self.shape.name}, {work.code}, {work.name}"
        for number in work.plan.outputs:
            self.shard(number, target=True)[1].fill_(POISON)
        sums = self.sums(work, self.sets)
        self.launch(work, sums, programs=programs)
        rng = np.random.default_rng(7)
        for number in range(self.sets):
            picked = rng.choice(self.count, min(samples, self.count), replace=False)
            picked[:2] = 0, self.count - 1
            rows = torch.from_numpy(picked).to(self.device)
            index = self.index[number][rows]
            inputs = [host(self._take(s, index, target=False)) for s in work.plan.inputs]
            outputs = [host(self._take(s, index, target=True)) for s in work.plan.outputs]
            taken = np.empty((len(picked), 0), np.uint64)
            if sums is not None:
                taken = sums[number][rows].cpu().numpy().view(np.uint64)
            check_plan(f"{what}, set {number}", work.plan, inputs, outputs, backend, taken)
        self._check_rebuilt(what, [s for s in work.plan.outputs if s < SHARDS])

    def _check_rebuilt(self, what: str, lost: Sequence[int]) -> None:
        for shard in lost:
            original, rebuilt = self.caches.tensors[shard], self.shard(shard, target=True)[1]
            for number in range(self.sets):
                index = self.index[number]
                if not torch.equal(self.caches.slots(original, index), self.caches.slots(rebuilt, index)):
                    raise WrongBytesError(f"{what}: shard {shard} of set {number} is not what it was")
            written = self.sets * self.count * self.shape.slot_bytes
            changed = int(torch.count_nonzero(rebuilt != POISON))
            if changed > written:
                raise WrongBytesError(
                    f"{what}: {changed} bytes of shard {shard} were written, {written} were asked for"
                )

    def _take(self, shard: int, index: torch.Tensor, *, target: bool) -> torch.Tensor:
        tensor = self.shard(shard, target=target)[1]
        return tensor[index[:, 2].long()] if shard >= SHARDS else self.caches.slots(tensor, index)
