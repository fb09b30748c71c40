"""What the engine must know of a checkpoint before it starts a worker, and why it refuses one."""

import copy
import json
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import msgspec
import torch
from safetensors import SafetensorError, safe_open
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.initialization import no_init_weights
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from ghostserve.engine.config import DTYPES, EngineConfig
from ghostserve.errors import CheckpointError, ConfigError, UnsupportedModelError
from ghostserve.parity.geometry import CacheLayout, ShardMap

__all__ = ["ModelSpec", "inspect_checkpoint", "weight_files"]

SHARDED = {"colwise": "colwise", "rowwise": "rowwise"}
WHOLE = {"embedding_rowwise", "replicated_with_grad_allreduce"}
_REFUSED_SETTINGS = {
    "num_experts": "a mixture of experts",
    "num_local_experts": "a mixture of experts",
    "n_routed_experts": "a mixture of experts",
    "kv_lora_rank": "multi-head latent attention",
    "attention_chunk_size": "chunked attention",
    "num_kv_shared_layers": "layers that share their KV cache",
}
_WEIGHT_DTYPES = ("F64", "F32", "F16", "BF16")
_LAYER_TYPES = {"full_attention", "sliding_attention"}


class ModelSpec(msgspec.Struct, frozen=True, kw_only=True):
    """Shapes of the model and of the paged cache; the same on every rank."""

    path: str
    model_type: str
    tensor_parallel_size: int
    dtype: str
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    max_model_len: int
    eos_token_ids: tuple[int, ...]
    block_size: int
    num_blocks: int

    @property
    def shard_map(self) -> ShardMap:
        return ShardMap.for_kv_heads(self.tensor_parallel_size, self.num_kv_heads)

    @property
    def kv_heads_per_rank(self) -> int:
        return max(1, self.num_kv_heads // self.tensor_parallel_size)

    @property
    def torch_dtype(self) -> torch.dtype:
        dtype = getattr(torch, self.dtype)
        assert isinstance(dtype, torch.dtype)
        return dtype

    @property
    def cache_layout(self) -> CacheLayout:
        row = self.kv_heads_per_rank * self.head_dim * self.torch_dtype.itemsize
        return CacheLayout.layered(self.num_layers, self.num_blocks, self.block_size, row)


def inspect_checkpoint(config: EngineConfig) -> ModelSpec:
    """Read and check a transformers checkpoint folder against the settings.

    Raises `CheckpointError` (missing, half-written, unknown), `UnsupportedModelError` (needs what the engine does not
    do) or `ConfigError` (settings that do not fit the model).
    """
    folder = Path(config.model)
    hf = _read_config(folder)
    _check_supported(hf)
    _check_sizes(folder, hf)
    tp = config.tensor_parallel_size
    heads = hf.num_attention_heads
    kv_heads = getattr(hf, "num_key_value_heads", None)
    kv_heads = heads if kv_heads is None else kv_heads
    if heads % tp:
        raise ConfigError(f"tensor_parallel_size {tp} does not divide the {heads} attention heads of {folder}")
    ShardMap.for_kv_heads(tp, kv_heads)
    _check_tensors(folder, hf, check_weights(folder))
    limit = getattr(hf, "max_position_embeddings", None) or 2048
    if config.max_model_len is not None and config.max_model_len > limit:
        raise ConfigError(f"max_model_len {config.max_model_len} exceeds the model's max_position_embeddings {limit}")
    dtype = config.dtype
    if dtype == "auto":
        dtype = str(getattr(hf, "dtype", None) or torch.float32).removeprefix("torch.")
        if dtype not in DTYPES:
            raise ConfigError(f"dtype {dtype!r} of {folder} is not supported; allowed: {', '.join(DTYPES)}")
    head_dim = getattr(hf, "head_dim", None) or hf.hidden_size // heads
    spec = ModelSpec(
        path=str(folder),
        model_type=hf.model_type,
        tensor_parallel_size=tp,
        dtype=dtype,
        num_layers=hf.num_hidden_layers,
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        vocab_size=hf.vocab_size,
        max_model_len=config.max_model_len or limit,
        eos_token_ids=_eos(folder, hf),
        block_size=config.block_size,
        num_blocks=1,
    )
    per_block = spec.cache_layout.slot_bytes * config.block_size * tp
    num_blocks = config.kv_cache_memory // per_block
    max_len = config.max_model_len or min(limit, max(2, num_blocks * config.block_size))
    needed = -(-max_len // config.block_size)
    if num_blocks < needed:
        raise ConfigError(
            f"kv_cache_memory {config.kv_cache_memory} holds {num_blocks} blocks; one sequence of max_model_len"
            f" {max_len} needs {needed} ({needed * per_block} bytes): raise the one or lower the other"
        )
    # No more blocks than all running sequences can ever fill.
    num_blocks = min(num_blocks, needed * config.max_num_seqs)
    return msgspec.structs.replace(spec, num_blocks=num_blocks, max_model_len=max_len)


def _read_config(folder: Path) -> Any:
    if not folder.is_dir():
        raise CheckpointError(f"checkpoint {str(folder)!r} is not a folder (nor a .gguf file)")
    file = folder / "config.json"
    if not file.is_file():
        raise CheckpointError(f"{folder} has no config.json: not a transformers checkpoint, or half-written")
    try:
        raw = json.loads(file.read_text())
    except (ValueError, OSError) as error:
        raise CheckpointError(f"{file} can't be read: {error}") from error
    if not isinstance(raw, dict) or "model_type" not in raw:
        raise CheckpointError(f"{file} names no model_type: not a transformers checkpoint")
    try:
        hf = AutoConfig.from_pretrained(folder, local_files_only=True)
    except Exception as error:
        raise CheckpointError(f"{file}: model_type {raw['model_type']!r} can't be used: {error!r}") from error
    return hf


def _check_sizes(folder: Path, hf: Any) -> None:
    for name in ("num_hidden_layers", "num_attention_heads", "num_key_value_heads", "hidden_size", "vocab_size"):
        value = getattr(hf, name, None)
        if name == "num_key_value_heads" and value is None:
            continue  # as many as attention heads
        if not isinstance(value, int) or value < 1:
            raise CheckpointError(f"{folder / 'config.json'}: {name} must be at least 1, not {value!r}")


def _check_supported(hf: Any) -> None:
    kind = hf.model_type
    if type(hf) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise UnsupportedModelError(f"model_type {kind!r} is no decoder that transformers can generate text with")
    plan = getattr(hf, "base_model_tp_plan", None)
    if not plan:
        raise UnsupportedModelError(f"model_type {kind!r} has no tensor-parallel plan (base_model_tp_plan)")
    odd = {name: style for name, style in plan.items() if style not in SHARDED and style not in WHOLE}
    if odd:
        name, style = next(iter(odd.items()))
        raise UnsupportedModelError(
            f"model_type {kind!r} needs tensor-parallel style {style!r} for {name!r}; supported:"
            f" {', '.join(sorted([*SHARDED, *WHOLE]))}"
        )
    for setting, meaning in _REFUSED_SETTINGS.items():
        if getattr(hf, setting, None):
            raise UnsupportedModelError(f"model_type {kind!r} uses {meaning} ({setting}), which is not supported")
    if getattr(hf, "quantization_config", None):
        raise UnsupportedModelError(f"model_type {kind!r} is quantised (quantization_config), which is not supported")
    rope = getattr(hf, "rope_parameters", None) or {}
    if "longrope" in str(rope):
        # Its factors follow the longest sequence of the batch: one request would change another's tokens.
        raise UnsupportedModelError(f"model_type {kind!r} uses longrope, which is not supported")
    types = set(getattr(hf, "layer_types", None) or ()) - _LAYER_TYPES
    if types:
        raise UnsupportedModelError(
            f"model_type {kind!r} has layers of type {', '.join(sorted(types))}; supported: {sorted(_LAYER_TYPES)}"
        )


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a checkpoint, each once. Raises `CheckpointError` where one is missing."""
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        try:
            names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
            files = [folder / name for name in names]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(f"{index} is damaged: {error}") from error
    else:
        files = [folder / "model.safetensors"]
    for file in files:
        if not file.is_file():
            raise CheckpointError(f"{folder} has no {file.name}: weights are missing (safetensors only)")
    return files


def check_weights(folder: Path) -> dict[str, list[int]]:
    """Open every weight file, so that a truncated one is found before any worker starts; tensor -> shape."""
    shapes: dict[str, list[int]] = {}
    for file in weight_files(folder):
        try:
            with safe_open(file, framework="pt") as tensors:
                for name in tensors.keys():  # noqa: SIM118
                    stored = tensors.get_slice(name)
                    shapes[name] = stored.get_shape()
                    if stored.get_dtype() not in _WEIGHT_DTYPES:
                        raise UnsupportedModelError(
                            f"{file}: tensor {name!r} is stored as {stored.get_dtype()}; quantised weights are not"
                            f" supported, only {', '.join(_WEIGHT_DTYPES)}"
                        )
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{file} is damaged or half-written: {error}") from error
    return shapes


def _check_tensors(folder: Path, hf: Any, shapes: dict[str, list[int]]) -> None:
    """Every parameter of the model must be there, in its shape."""
    try:
        with torch.device("meta"), no_init_weights():
            # A copy: the dtype is written into the configuration.
            model = AutoModelForCausalLM.from_config(copy.deepcopy(hf), dtype=torch.float32)
    except Exception as error:  # transformers raises whatever a wrong value leads to
        raise CheckpointError(f"{folder / 'config.json'}: no model can be made of it: {error!r}") from error
    for name, parameter in model.named_parameters():
        if name == "lm_head.weight" and name not in shapes and getattr(hf, "tie_word_embeddings", False):
            continue
        if name not in shapes:
            raise CheckpointError(f"{folder} has no tensor {name!r}: config.json and weights do not fit")
        if shapes[name] != list(parameter.shape):
            raise CheckpointError(
                f"{folder}: tensor {name!r} has shape {shapes[name]}, config.json asks for {list(parameter.shape)}"
            )


def _eos(folder: Path, hf: Any) -> tuple[int, ...]:
    found: set[int] = set()
    file = folder / "generation_config.json"
    sources = [getattr(hf, "eos_token_id", None)]
    if file.is_file():
        try:
            sources.append(json.loads(file.read_text()).get("eos_token_id"))
        except (ValueError, AttributeError) as error:
            raise CheckpointError(f"{file} can't be read: {error}") from error
    for source in sources:
        if source is not None:
            found.update(source if isinstance(source, list) else [source])
    return tuple(sorted(found))


def plan_style(plan: dict[str, str], name: str) -> str | None:
    """The style that a plan of patterns like `layers.*.mlp.up_proj` gives the module `name`."""
    for pattern, style in plan.items():
        if fnmatch(name, pattern):
            return style
    return None
