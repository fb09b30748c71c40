"""The small model that a soak makes for itself: random weights, and a word for every token id."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from ghostserve.bench.shapes import Shape, make_checkpoint

__all__ = ["small_model"]

# Heads for 2, 3, 4 or 6 ranks, as wide as vLLM's attention on the CPU needs them.
_SHAPE = Shape(
    hidden=768,
    layers=2,
    heads=12,
    kv_heads=12,
    intermediate=768,
    vocabulary=1024,
    dtype="float32",
    context=1024,
    kv_bytes=64 << 20,
)


@contextmanager
def small_model() -> Iterator[Path]:
    """A checkpoint in a temporary folder, which is gone afterwards; always the same bytes."""
    with TemporaryDirectory(prefix="ghostserve-soak-model-") as name:
        folder = Path(name)
        make_checkpoint(folder, _SHAPE)
        words = {f"w{number} ": number for number in range(_SHAPE.vocabulary)}
        tokenizer = Tokenizer(models.WordLevel(words, unk_token="w0 "))
        PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="w0 ").save_pretrained(folder)
        yield folder
