"""The models that vLLM serves here: tiny ones with random weights, and SmolLM2 as a folder that vLLM can read."""

from pathlib import Path

import tiny

from ghostserve.cli.bundled import bundled_model
from ghostserve.engine.files import resolve_checkpoint

__all__ = ["VOCABULARY", "make_llama", "make_smollm2"]

VOCABULARY = tiny.VOCABULARY
CONTEXT = 2048


def make_llama(folder: Path) -> Path:
    """Four heads with a KV head each, as wide as vLLM's attention on the CPU needs them."""
    config = tiny.llama(heads=4, kv_heads=4, hidden_size=256, head_dim=64, max_position_embeddings=CONTEXT)
    return tiny.make_checkpoint(folder, config)


def make_smollm2() -> Path:
    """SmolLM2-135M-Instruct, from its GGUF file to safetensors. GHOSTSERVE_CACHE says where to."""
    return resolve_checkpoint(str(bundled_model()))
