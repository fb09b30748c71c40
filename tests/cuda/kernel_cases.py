"""One case of a kernel against its reference: caches of random bytes, poisoned outputs, and what must come out."""

from dataclasses import dataclass

import numpy as np
import torch

from ghostserve.cuda.kernels import Kernels, Tile
from ghostserve.cuda.naive import naive_run
from ghostserve.cuda.shards import FlatShard, PagedShard, slot_index
from ghostserve.parity.geometry import CacheLayout, Segment
from ghostserve.parity.paging import gather
from ghostserve.parity.ranges import SlotRange, num_slots

POISON = 0xA5


def token_major(row_bytes, layers=2, blocks=5, block_size=16):
    """[layer][K|V][block][slot][row]: vLLM's NHD and this engine's own."""
    return CacheLayout.layered(layers, blocks, block_size, row_bytes)


def head_major(head_bytes, heads=2, layers=1, blocks=5, block_size=16):
    """[layer][K|V][block][head][slot][head_bytes]: a slot's row lies in as many places as there are heads."""
    block_bytes = heads * block_size * head_bytes
    segments = [
        Segment((part * blocks * heads + head) * block_size * head_bytes, block_bytes, head_bytes, head_bytes)
        for part in range(2 * layers)
        for head in range(heads)
    ]
    # Heads of one part stand next to each other inside a block.
    segments = [
        Segment(part * blocks * block_bytes + head * block_size * head_bytes, block_bytes, head_bytes, head_bytes)
        for part in range(2 * layers)
        for head in range(heads)
    ]
    return CacheLayout(blocks, block_size, tuple(segments))


def uneven(block_size=8, blocks=4):
    """Keys longer than values, layers interleaved inside a block."""
    row = 192 + 64
    segments = []
    for layer in range(2):
        at = layer * block_size * row
        segments.append(Segment(at, 2 * block_size * row, 192, 192))
        segments.append(Segment(at + block_size * 192, 2 * block_size * row, 64, 64))
    return CacheLayout(blocks, block_size, tuple(segments))


WHOLE = [SlotRange(3, 0, 0, 0, 16), SlotRange(1, 0, 1, 0, 16)]
PARTS = [SlotRange(4, 0, 0, 3, 16), SlotRange(0, 0, 1, 0, 5), SlotRange(2, 0, 2, 7, 8)]
SINGLES = [SlotRange(b, 0, b, s, s + 1) for b, s in ((0, 15), (4, 0), (2, 9), (1, 1), (3, 8))]


@dataclass
class Outcome:
    """What a kernel gave and what it must have given, shard by shard, and the bytes that it must not have touched."""

    outputs: list[np.ndarray]
    expected: list[np.ndarray]
    sums: np.ndarray
    expected_sums: np.ndarray
    untouched: bool

    @property
    def right(self):
        same = all(np.array_equal(a, b) for a, b in zip(self.outputs, self.expected, strict=True))
        return same and np.array_equal(self.sums, self.expected_sums) and self.untouched


class Case:
    """A cache layout on a device; `run` puts one plan through the kernel and through the reference."""

    def __init__(self, layout, device, tile=None, seed=0):
        self.layout, self.device = layout, device
        self.random = np.random.default_rng(seed)
        self.kernels = Kernels(layout, device, tile or Tile(words=64))

    def encode(self, code, ranges, programs=None):
        """Paged data in, token-major parity out, as a flush does it."""
        return self.run(code.encode_plan, ranges, paged=lambda shard: shard < code.n, programs=programs)

    def rebuild(self, code, lost, ranges, wanted=None):
        """Paged survivors and token-major parity in; data shards out into paged caches, as a recovery does it."""
        return self.run(code.rebuild_plan(lost, wanted), ranges, paged=lambda shard: shard < code.n)

    def run(self, plan, ranges, paged, checksums=True, programs=None):
        slots, size = num_slots(ranges), self.layout.slot_bytes
        positions = (*plan.inputs, *plan.outputs)
        gap = 32  # bytes between token-major rows, poisoned: a kernel that writes too far is seen
        memory, host = [], []
        for at, shard in enumerate(positions):
            nbytes = self.layout.total_bytes if paged(shard) else slots * (size + gap)
            fill = self.random.integers(0, 256, nbytes, np.uint8)
            if at >= len(plan.inputs):
                fill = np.full(nbytes, POISON, np.uint8)
            host.append(fill)
            memory.append(self._aligned(fill))
        shards = [
            PagedShard.of_arena(self.layout, m.data_ptr()) if paged(s) else FlatShard(m.data_ptr(), size + gap)
            for s, m in zip(positions, memory, strict=True)
        ]
        order = self.random.permutation(slots)  # rows need not be in the slots' order
        index = torch.from_numpy(slot_index(ranges, order)).to(self.device)
        sums = torch.zeros((slots, len(positions)), dtype=torch.int64, device=self.device)
        self.kernels.bind(plan, shards, checksums=checksums).launch(
            index, slots, sums if checksums else None, programs=programs
        )
        after = [m.cpu().numpy() for m in memory]

        def shard_bytes(at, content):
            if paged(positions[at]):
                return gather(content, self.layout, ranges)
            return content.reshape(slots, size + gap)[order, :size]

        count = len(plan.inputs)
        arenas = {s: host[at] for at, s in enumerate(plan.inputs) if paged(s)}
        flat = {s: shard_bytes(at, host[at]) for at, s in enumerate(plan.inputs) if not paged(s)}
        expected, expected_sums = naive_run(plan, self.layout, ranges, arenas, flat)
        outputs = [shard_bytes(at, after[at]) for at in range(count, len(positions))]
        untouched = all(np.array_equal(a, b) for a, b in zip(after[:count], host[:count], strict=True))
        for at in range(count, len(positions)):
            written = slots * size
            changed = int((after[at] != POISON).sum())
            untouched &= changed <= written and changed == int((outputs[at - count] != POISON).sum())
        got = sums.cpu().numpy().view(np.uint64)
        return Outcome(outputs, expected, got, expected_sums if checksums else np.zeros_like(got), untouched)

    def _aligned(self, content):
        """The bytes on the device, at an address aligned to 16."""
        room = torch.empty(content.size + 16, dtype=torch.uint8, device=self.device)
        start = -room.data_ptr() % 16
        view = room[start : start + content.size]
        view.copy_(torch.from_numpy(content))
        return view
