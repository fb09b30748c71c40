"""What stands in for `Kernels`: the same interface by the CPU backend over addresses, and twins of it that fail."""

import ctypes

import numpy as np

from ghostserve.codes import make_backend
from ghostserve.cuda.shards import FlatShard
from ghostserve.errors import CudaError


class HostKernels:
    """Runs plans in the calling thread at once. `launches` counts them, `warmed` the plans that were warmed up."""

    def __init__(self, layout):
        self.layout, self.backend = layout, make_backend("cpu")
        self.launches, self.warmed = 0, 0

    def warm_up(self, plan, paged, *, checksums=True):
        assert len(paged) == len(plan.inputs) + len(plan.outputs)
        self.warmed += 1

    def bind(self, plan, shards, *, checksums=True):
        assert len(shards) == len(plan.inputs) + len(plan.outputs)
        return HostBound(self, plan, shards)


class HostBound:
    def __init__(self, kernels, plan, shards):
        self.kernels, self.plan, self.shards = kernels, plan, shards

    def launch(self, index, count, sums=None, *, programs=None):
        kernels, plan = self.kernels, self.plan
        kernels.launches += 1
        slots = index.numpy()[:count].tolist()
        for block, slot, row in slots:
            # An index that was not there yet, say: a device would stop here, and this process with it.
            if not (0 <= block < kernels.layout.num_blocks and 0 <= slot < kernels.layout.block_size and row >= 0):
                raise CudaError(f"the kernel went to block {block}, slot {slot}", code="cudaErrorIllegalAddress")
        shape = (count, kernels.layout.slot_bytes)
        data = [np.zeros(shape, np.uint8) for _ in self.shards]
        for shard, rows in zip(self.shards[: len(plan.inputs)], data, strict=False):
            self._move(shard, slots, rows, read=True)
        kernels.backend.run(plan, data[: len(plan.inputs)], data[len(plan.inputs) :])
        for shard, rows in list(zip(self.shards, data, strict=True))[len(plan.inputs) :]:
            self._move(shard, slots, rows, read=False)
        taken = np.stack([kernels.backend.checksums(rows) for rows in data], axis=1)
        sums.numpy().view(np.uint64).reshape(-1)[: taken.size] += taken.reshape(-1)

    def _move(self, shard, slots, rows, *, read):
        for (block, slot, row), data in zip(slots, rows, strict=True):
            if isinstance(shard, FlatShard):
                places = [(shard.address + row * shard.row_stride, data.nbytes)]
            else:
                segments = zip(shard.addresses, self.kernels.layout.segments, strict=True)
                places = [(a + block * s.block_stride + slot * s.slot_stride, s.nbytes) for a, s in segments]
            here = data.ctypes.data
            for there, nbytes in places:
                ctypes.memmove(*((here, there) if read else (there, here)), nbytes)
                here += nbytes


class SkippedKernels(HostKernels):
    """Never runs: outputs and checksums stay what they were."""

    def bind(self, plan, shards, *, checksums=True):
        return _Skipped()


class _Skipped:
    def launch(self, index, count, sums=None, *, programs=None):
        pass


class LyingKernels(HostKernels):
    """Gives all checksums right and writes nothing."""

    def bind(self, plan, shards, *, checksums=True):
        return _Lying(self, plan, shards)


class _Lying(HostBound):
    def _move(self, shard, slots, rows, *, read):
        if read:
            super()._move(shard, slots, rows, read=True)
