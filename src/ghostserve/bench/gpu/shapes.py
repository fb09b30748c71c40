"""The caches that are measured, as one rank of a well-known model holds them."""

from dataclasses import dataclass

from ghostserve.parity.geometry import CacheLayout

__all__ = ["LLAMA_8B_TP4", "LLAMA_8B_TP8", "LLAMA_70B_TP8", "CacheShape"]


@dataclass(frozen=True)
class CacheShape:
    """One rank's paged KV cache; `row_bytes`: K or V of one token in one layer; `ranks`: data shards of the model."""

    name: str
    layers: int
    row_bytes: int
    ranks: int
    block_size: int = 16

    @property
    def slot_bytes(self) -> int:
        return 2 * self.layers * self.row_bytes

    def layout(self, num_blocks: int) -> CacheLayout:
        """The usual cache, `[layer][K|V][block][slot][row]`, in one allocation."""
        return CacheLayout.layered(self.layers, num_blocks, self.block_size, self.row_bytes)

    def blocks(self, tokens: int) -> int:
        """Blocks that hold this many tokens."""
        return -(-tokens // self.block_size)


# bf16, heads of 128: 2 KV heads a rank at TP 4, 1 at TP 8.
LLAMA_8B_TP4 = CacheShape("Llama-3-8B TP 4", layers=32, row_bytes=512, ranks=4)
LLAMA_8B_TP8 = CacheShape("Llama-3-8B TP 8", layers=32, row_bytes=256, ranks=8)
LLAMA_70B_TP8 = CacheShape("Llama-3-70B TP 8", layers=80, row_bytes=256, ranks=8)
