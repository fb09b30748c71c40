"""Checkpoints with random weights in the shape of known models: what a benchmark needs of a model is its size."""

import json
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

from ghostserve.errors import ConfigError
from ghostserve.parity.limits import format_bytes

__all__ = ["SHAPES", "Shape", "make_checkpoint", "shape_checkpoint"]

_SEED = 20_26
_FILE_BYTES = 2 << 30
_STD = 0.02
_POOL = 1 << 24


@dataclass(frozen=True)
class Shape:
    """A Llama's sizes; `context` is what its engine serves in a benchmark, `kv_bytes` its cache over all ranks."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    intermediate: int
    vocabulary: int
    dtype: str
    context: int
    kv_bytes: int
    head_size: int = 0
    """0: `hidden` shared out over the heads."""

    @property
    def config(self) -> LlamaConfig:
        return LlamaConfig(
            hidden_size=self.hidden,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.kv_heads,
            head_dim=self.head_size or self.hidden // self.heads,
            intermediate_size=self.intermediate,
            vocab_size=self.vocabulary,
            max_position_embeddings=131_072,
            tie_word_embeddings=False,
            dtype=self.dtype,
        )


SHAPES = {
    "tiny": Shape(256, 2, 8, 4, 512, 1024, "bfloat16", 1024, 64 << 20),
    "small": Shape(512, 8, 8, 8, 1408, 1024, "float32", 4096, 384 << 20),
    "llama-3.2-1b": Shape(2048, 16, 32, 8, 8192, 128_256, "bfloat16", 2048, 1 << 30),
    "llama-3-8b": Shape(4096, 32, 32, 8, 14336, 128_256, "bfloat16", 2048, 4 << 30),
    # On 4 ranks each has the shard of one rank of Llama-3-70B at TP 8, with 20 of its 80 layers: all 4 together do
    # the work of that one rank, and fit one GPU.
    "llama-3-70b-rank": Shape(8192, 20, 32, 4, 14336, 128_256, "bfloat16", 2048, 4 << 30, head_size=128),
}


@contextmanager
def shape_checkpoint(name: str, progress: Callable[[str], None]) -> Iterator[Path]:
    """A checkpoint of the shape `name` in a temporary folder, which is gone afterwards.

    Raises `ConfigError` for an unknown shape, or where the folder's disk is too small (set TMPDIR).
    """
    if name not in SHAPES:
        raise ConfigError(f"shape {name!r} is unknown; allowed: {', '.join(SHAPES)}")
    folder = Path(tempfile.mkdtemp(prefix="ghostserve-shape-"))
    try:
        make_checkpoint(folder, SHAPES[name], progress)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def make_checkpoint(folder: Path, shape: Shape, progress: Callable[[str], None] = lambda text: None) -> None:
    """Write config, weights in files of about 2 GB, and a tokenizer that knows no words.

    The same shape gives the same bytes. They are drawn on the CPU: this process goes on to lead an engine, and must
    not keep a context on a GPU.
    """
    config = shape.config
    with torch.device("meta"):
        skeleton = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, shape.dtype))
    wanted = dict(skeleton.named_parameters())
    total = sum(p.numel() * p.element_size() for p in wanted.values())
    free = shutil.disk_usage(folder).free
    if total > free:
        raise ConfigError(
            f"{folder} has {format_bytes(free)} free, the checkpoint needs {format_bytes(total)}: set TMPDIR"
        )
    # Drawn once and repeated: 16 GB of fresh normals would take minutes.
    pool = torch.randn(_POOL, generator=torch.Generator().manual_seed(_SEED)).mul_(_STD).to(getattr(torch, shape.dtype))
    index: dict[str, str] = {}
    part: dict[str, torch.Tensor] = {}
    size = number = 0
    for position, (name, parameter) in enumerate(wanted.items(), 1):
        part[name] = _draw(parameter, pool, position)
        size += parameter.numel() * parameter.element_size()
        if size >= _FILE_BYTES or position == len(wanted):
            number += 1
            file = f"model-{number:05}.safetensors"
            progress(f"writing {file} of {format_bytes(total)} in all")
            save_file(part, folder / file, metadata={"format": "pt"})
            index |= dict.fromkeys(part, file)
            part, size = {}, 0
    config.architectures = ["LlamaForCausalLM"]
    config.save_pretrained(folder)
    index_file = {"metadata": {"total_size": total}, "weight_map": index}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index_file))
    words = Tokenizer(models.WordLevel({"<unk>": 0}, unk_token="<unk>"))
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>").save_pretrained(folder)


def _draw(parameter: torch.Tensor, pool: torch.Tensor, number: int) -> torch.Tensor:
    """Values of the checkpoint's `number`-th parameter, from a pool of normals that each begins elsewhere in."""
    if parameter.dim() == 1:  # a norm's scale
        return torch.ones(parameter.shape, dtype=parameter.dtype)
    drawn = torch.empty(parameter.numel(), dtype=parameter.dtype)
    done, at = 0, number * 7919 % len(pool)
    while done < len(drawn):
        part = pool[at : at + len(drawn) - done]
        drawn[done : done + len(part)] = part
        done, at = done + len(part), (at + 7919) % 104729  # not the same period after period
    return drawn.view(parameter.shape)
