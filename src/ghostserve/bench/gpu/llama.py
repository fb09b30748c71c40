"""One tensor-parallel rank of a Llama-shaped model with random weights, in plain PyTorch.

The rank's own matrices and KV heads, every kernel of its step but the all-reduces: it has no peers to reduce with, and
goes on with its own partial sums. So it computes nothing of use, at the speed of a rank whose communication is free:
the hardest case for work that hides behind it.
"""

from dataclasses import dataclass

import torch
from torch.backends.cuda import SDPAParams, can_use_flash_attention
from torch.nn import functional
from torch.nn.attention.bias import causal_lower_right

from ghostserve.bench.gpu.shapes import LLAMA_8B_TP4, LLAMA_8B_TP8, LLAMA_70B_TP8, CacheShape
from ghostserve.errors import ConfigError

__all__ = ["RANK_8B_TP4", "RANK_8B_TP8", "RANK_70B_TP8", "LlamaRank", "RankShape"]

_THETA = 500_000.0
_DTYPE = torch.bfloat16


@dataclass(frozen=True)
class RankShape:
    """What one rank holds; heads, intermediate size and vocabulary are its share."""

    cache: CacheShape
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocabulary: int

    @property
    def weight_bytes(self) -> int:
        attention = self.hidden * self.head_dim * (2 * self.heads + 2 * self.kv_heads)
        layer = attention + 3 * self.hidden * self.intermediate
        return _DTYPE.itemsize * (self.cache.layers * layer + 2 * self.vocabulary * self.hidden)


RANK_8B_TP4 = RankShape(LLAMA_8B_TP4, 4096, 32 // 4, 8 // 4, 128, 14336 // 4, 128_256 // 4)
RANK_8B_TP8 = RankShape(LLAMA_8B_TP8, 4096, 32 // 8, 8 // 8, 128, 14336 // 8, 128_256 // 8)
RANK_70B_TP8 = RankShape(LLAMA_70B_TP8, 8192, 64 // 8, 8 // 8, 128, 28672 // 8, 128_256 // 8)


@dataclass(frozen=True)
class _Layer:
    qkv: torch.Tensor
    out: torch.Tensor
    gate_up: torch.Tensor
    down: torch.Tensor


class LlamaRank:
    """Writes KV into a paged cache whose blocks stand in a sequence's order, and attends over it in place.

    `cache`: uint8 (layout.total_bytes,) of the shape's layout. A sequence of `context` tokens has consecutive blocks,
    so its keys are one dense piece of memory and PyTorch's own attention reads them.
    """

    def __init__(self, shape: RankShape, cache: torch.Tensor, positions: int, seed: int = 0) -> None:
        """`positions`: the longest context. Raises `ConfigError` where flash attention can't run this shape."""
        self.shape = shape
        device = cache.device
        generator = torch.Generator(device).manual_seed(seed)
        # [layer][K|V][slot][head][dim]: blocks and slots are neighbours
        self.kv = cache.view(_DTYPE).view(shape.cache.layers, 2, -1, shape.kv_heads, shape.head_dim)

        def matrix(rows: int, columns: int) -> torch.Tensor:
            return torch.empty(rows, columns, dtype=_DTYPE, device=device).normal_(0, 0.02, generator=generator)

        width = shape.heads * shape.head_dim
        both = 2 * shape.kv_heads * shape.head_dim
        self.embedding = matrix(shape.vocabulary, shape.hidden)
        self.head = matrix(shape.vocabulary, shape.hidden)
        self.layers = [
            _Layer(
                matrix(width + both, shape.hidden),
                matrix(shape.hidden, width),
                matrix(2 * shape.intermediate, shape.hidden),
                matrix(shape.hidden, shape.intermediate),
            )
            for _ in range(shape.cache.layers)
        ]
        self.norm = torch.ones(shape.hidden, dtype=_DTYPE, device=device)
        frequency = _THETA ** (-torch.arange(0, shape.head_dim, 2, device=device, dtype=torch.float32) / shape.head_dim)
        angles = torch.arange(positions, device=device, dtype=torch.float32)[:, None] * frequency
        self.cos = torch.cat([angles.cos()] * 2, dim=1).to(_DTYPE)
        self.sin = torch.cat([-angles.sin(), angles.sin()], dim=1).to(_DTYPE)
        self._require_flash(device)

    @torch.inference_mode()
    def prefill(self, tokens: torch.Tensor, start: int) -> torch.Tensor:
        """Tokens `start..` of one sequence, int64 (T,), into slots `start..`; the next token, int64 (1,)."""
        count = len(tokens)
        stop = start + count
        turn = self.cos[start:stop, None], self.sin[start:stop, None]
        mask: torch.Tensor = causal_lower_right(count, stop)
        if tokens.device.type != "cuda":
            mask = torch.ones(count, stop, dtype=torch.bool).tril(start)
        x = self.embedding[tokens]
        for number, layer in enumerate(self.layers):
            query, key, value = self._project(layer, x, turn)
            self.kv[number, 0, start:stop] = key
            self.kv[number, 1, start:stop] = value
            keys, values = (self.kv[number, part, :stop].transpose(0, 1)[None] for part in (0, 1))
            found = functional.scaled_dot_product_attention(
                query.transpose(0, 1)[None], keys, values, attn_mask=mask, enable_gqa=True
            )
            x = self._finish(layer, x, found[0].transpose(0, 1).reshape(count, -1))
        return self._next(x[-1:])

    @torch.inference_mode()
    def decode(self, tokens: torch.Tensor, positions: torch.Tensor, context: int) -> torch.Tensor:
        """One token of each of B sequences, int64 (B,); sequence b has the slots from `b * context` on.

        `positions`, int64 (B,): the slot within its sequence that each token takes the place of. Attention goes over
        all `context` slots at every step: the cost is that of a constant context. Returns the next tokens, int64 (B,).
        """
        count = len(tokens)
        slots = torch.arange(count, device=tokens.device) * context + positions
        turn = self.cos[positions, None], self.sin[positions, None]
        x = self.embedding[tokens]
        for number, layer in enumerate(self.layers):
            query, key, value = self._project(layer, x, turn)
            self.kv[number, 0].index_copy_(0, slots, key)
            self.kv[number, 1].index_copy_(0, slots, value)
            keys, values = (
                self.kv[number, part, : count * context].view(count, context, *self.kv.shape[3:]).transpose(1, 2)
                for part in (0, 1)
            )
            found = functional.scaled_dot_product_attention(query[:, :, None], keys, values, enable_gqa=True)
            x = self._finish(layer, x, found.reshape(count, -1))
        return self._next(x)

    def _project(
        self, layer: _Layer, x: torch.Tensor, turn: tuple[torch.Tensor, torch.Tensor]
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Queries, keys and values, (T, heads, head_dim), keys and queries turned by their positions."""
        heads, kv_heads, dim = self.shape.heads, self.shape.kv_heads, self.shape.head_dim
        both = functional.linear(self._normed(x), layer.qkv).view(len(x), heads + 2 * kv_heads, dim)
        turned = both[:, : heads + kv_heads]
        cos, sin = turn
        turned = turned * cos + turned.roll(dim // 2, dims=-1) * sin
        return turned[:, :heads], turned[:, heads:], both[:, heads + kv_heads :]

    def _finish(self, layer: _Layer, x: torch.Tensor, attended: torch.Tensor) -> torch.Tensor:
        x = x + functional.linear(attended, layer.out)
        gate, up = functional.linear(self._normed(x), layer.gate_up).chunk(2, dim=-1)
        return x + functional.linear(functional.silu(gate) * up, layer.down)

    def _next(self, x: torch.Tensor) -> torch.Tensor:
        return functional.linear(self._normed(x), self.head).argmax(dim=-1)

    def _normed(self, x: torch.Tensor) -> torch.Tensor:
        return functional.rms_norm(x, (self.shape.hidden,), self.norm, 1e-5)

    def _require_flash(self, device: torch.device) -> None:
        """Anything but flash attention would make the model so slow that every overhead looks small."""
        if device.type != "cuda":
            return
        shape = self.shape
        query = torch.empty(1, shape.heads, 16, shape.head_dim, dtype=_DTYPE, device=device)
        key = torch.empty(1, shape.kv_heads, 64, shape.head_dim, dtype=_DTYPE, device=device)
        if not can_use_flash_attention(SDPAParams(query, key, key, None, 0.0, False, True)):
            raise ConfigError(
                f"PyTorch {torch.__version__} has no flash attention for {shape.heads} query and"
                f" {shape.kv_heads} KV heads of {shape.head_dim} in {_DTYPE} on {torch.cuda.get_device_name(device)}"
            )
