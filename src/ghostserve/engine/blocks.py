"""The pages of the KV cache: who owns which block, in which generation."""

from collections import deque

from ghostserve.errors import GhostServeError

__all__ = ["BlockManager"]


class BlockManager:
    """Hands out blocks. A freed block rests until the watermark has passed the last step that could have used it:

    a recovery may roll back to the watermark and run the steps after it again, and a flush may still read it.
    """

    def __init__(self, num_blocks: int, block_size: int) -> None:
        self.num_blocks = num_blocks
        self.block_size = block_size
        # The block that was freed last is taken first: its pages are there already, in every process that maps them.
        self._free = list(reversed(range(num_blocks)))
        self._resting: deque[tuple[int, tuple[int, ...]]] = deque()
        self._generations = [0] * num_blocks

    @property
    def num_free(self) -> int:
        """Blocks that can be handed out now."""
        return len(self._free)

    @property
    def usage(self) -> float:
        """Share of the blocks that are not free, 0 to 1."""
        return 1 - len(self._free) / self.num_blocks

    @property
    def has_resting(self) -> bool:
        """True if blocks will become free as the watermark goes on."""
        return bool(self._resting)

    def needed(self, num_tokens: int) -> int:
        """Blocks that hold `num_tokens` slots."""
        return -(-num_tokens // self.block_size)

    def allocate(self, count: int) -> list[int]:
        """Take `count` blocks, each in a new generation. The caller has looked at `num_free`."""
        if count > len(self._free):
            raise GhostServeError(f"{count} blocks asked for, {len(self._free)} are free")
        blocks = [self._free.pop() for _ in range(count)]
        for block in blocks:
            self._generations[block] = (self._generations[block] + 1) & 0xFFFFFFFF
        return blocks

    def generation(self, block: int) -> int:
        """How often the block has been handed out."""
        return self._generations[block]

    def free(self, blocks: list[int], last_step: int) -> None:
        """Give blocks back that steps up to `last_step` may use; `reclaim` makes them free."""
        if blocks:
            self._resting.append((last_step, tuple(blocks)))

    def reclaim(self, watermark: int) -> None:
        """All slots of steps up to `watermark` are committed: nothing older is run or read again."""
        while self._resting and self._resting[0][0] <= watermark:
            self._free.extend(self._resting.popleft()[1])
