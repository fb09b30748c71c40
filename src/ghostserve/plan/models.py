"""The sizes of a model that a plan needs: from a transformers config.json, or known by name."""

import json
from pathlib import Path

import msgspec

from ghostserve.errors import CheckpointError, ConfigError

__all__ = ["MODELS", "ModelShape", "read_shape"]


class ModelShape(msgspec.Struct, frozen=True, kw_only=True):
    """A dense decoder's sizes; `bytes_per_value` of both weights and KV."""

    name: str
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocabulary: int
    bytes_per_value: int = 2

    @property
    def kv_bytes_per_token(self) -> int:
        """K and V of all layers, each KV head once (ranks that hold replicas are not counted)."""
        return 2 * self.layers * self.kv_heads * self.head_dim * self.bytes_per_value

    @property
    def parameters(self) -> int:
        """Weights of the matrices: attention, a gated MLP, embedding and head; norms and biases are left out."""
        attention = self.hidden * self.head_dim * (2 * self.heads + 2 * self.kv_heads)
        return self.layers * (attention + 3 * self.hidden * self.intermediate) + 2 * self.vocabulary * self.hidden


def _llama(name: str, hidden: int, layers: int, heads: int, intermediate: int) -> ModelShape:
    return ModelShape(
        name=name,
        hidden=hidden,
        layers=layers,
        heads=heads,
        kv_heads=8,
        head_dim=128,
        intermediate=intermediate,
        vocabulary=128_256,
    )


MODELS = {
    shape.name: shape
    for shape in (
        _llama("llama-3-8b", 4096, 32, 32, 14336),
        _llama("llama-3-70b", 8192, 80, 64, 28672),
        _llama("llama-3.1-405b", 16384, 126, 128, 53248),
    )
}


def read_shape(model: str) -> ModelShape:
    """`model` is a name of `MODELS`, or a folder with a config.json. Raises `ConfigError` or `CheckpointError`."""
    if model in MODELS:
        return MODELS[model]
    path = Path(model) / "config.json"
    if not path.is_file():
        raise ConfigError(f"model {model!r} has no config.json; allowed: a checkpoint folder, or {', '.join(MODELS)}")
    try:
        config = json.loads(path.read_text())
        heads, hidden = int(config["num_attention_heads"]), int(config["hidden_size"])
        dtype = str(config.get("dtype") or config.get("torch_dtype") or "bfloat16")
        shape = ModelShape(
            name=Path(model).name,
            hidden=hidden,
            layers=int(config["num_hidden_layers"]),
            heads=heads,
            kv_heads=int(config.get("num_key_value_heads") or heads),
            head_dim=int(config.get("head_dim") or hidden // heads),
            intermediate=int(config["intermediate_size"]),
            vocabulary=int(config["vocab_size"]),
            bytes_per_value=4 if dtype == "float32" else 2,
        )
    except (OSError, ValueError, TypeError, AttributeError, ZeroDivisionError) as error:
        raise CheckpointError(f"{path}: {error}; needed: a config of a dense decoder") from error
    except KeyError as error:
        raise CheckpointError(f"{path}: {error} is missing; needed: a config of a dense decoder") from error
    if any(name in config for name in ("kv_lora_rank", "num_experts", "num_local_experts", "n_routed_experts")):
        raise CheckpointError(f"{path}: not a dense decoder with a plain KV cache; a plan knows only those")
    return shape
