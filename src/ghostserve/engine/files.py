"""Where a model comes from: a transformers checkpoint folder, or a GGUF file converted once into one."""

import hashlib
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from ghostserve.errors import CheckpointError

__all__ = ["cache_folder", "load_tokenizer", "resolve_checkpoint"]

_MAGIC = b"GGUF"


def cache_folder() -> Path:
    """`$GHOSTSERVE_CACHE`, else `ghostserve` in the user's cache folder."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("GHOSTSERVE_CACHE") or Path(base) / "ghostserve")


def resolve_checkpoint(model: str) -> Path:
    """The checkpoint folder for `model`: itself, or the converted form of a `.gguf` file.

    The conversion is done once and cached by the file's content. Raises `CheckpointError` for what is neither.
    """
    path = Path(model).expanduser()
    if path.is_dir():
        return path
    if not path.exists():
        raise CheckpointError(
            f"checkpoint {model!r} does not exist; give a transformers checkpoint folder or a .gguf file"
        )
    if path.suffix != ".gguf":
        raise CheckpointError(f"checkpoint {model!r} is neither a folder nor a .gguf file")
    with path.open("rb") as file:
        magic = file.read(4)
        if magic != _MAGIC:
            raise CheckpointError(f"{path} is no GGUF file: it begins with {magic!r}, not {_MAGIC!r}")
        file.seek(0)
        digest = hashlib.file_digest(file, "sha256").hexdigest()[:16]
    folder = cache_folder() / "checkpoints" / f"{path.stem}-{digest}"
    if not (folder / "config.json").is_file():
        _convert(path, folder)
    return folder


def load_tokenizer(folder: Path) -> Any:
    """The checkpoint's tokenizer. Raises `CheckpointError` if it has none that can be used."""
    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (ValueError, OSError, KeyError, TypeError) as error:
        raise CheckpointError(f"{folder} has no usable tokenizer: {error}") from error


def _convert(gguf: Path, folder: Path) -> None:
    """Dequantise into `folder`; it appears whole or not at all, whatever interrupts this."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=".converting-", dir=folder.parent))
    try:
        source = {
            "pretrained_model_name_or_path": str(gguf.parent),
            "gguf_file": gguf.name,
            "local_files_only": True,
        }
        try:
            model = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
            tokenizer = AutoTokenizer.from_pretrained(**source)
        except Exception as error:  # a damaged file can make the reader fail in any way
            raise CheckpointError(f"{gguf} can't be converted: damaged, half-written or unknown ({error!r})") from error
        tied = model.config.tie_word_embeddings
        tensors = {k: v.contiguous() for k, v in model.state_dict().items() if not (tied and k == "lm_head.weight")}
        save_file(tensors, scratch / "model.safetensors", metadata={"format": "pt"})
        if hasattr(model.config, "quantization_config"):
            del model.config.quantization_config  # the weights are plain floats now
        model.config.save_pretrained(scratch)
        model.generation_config.save_pretrained(scratch)
        tokenizer.save_pretrained(scratch)
        try:
            scratch.rename(folder)
        except OSError:
            if not (folder / "config.json").is_file():  # else another process was faster, with the same result
                raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
