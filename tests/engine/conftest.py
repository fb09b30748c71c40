"""Tiny checkpoints on disk, made once a session."""

from collections.abc import Callable
from pathlib import Path

import pytest
import tiny
from transformers import PreTrainedConfig

Checkpoint = Callable[..., str]


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """`checkpoint(name, config)`: the folder of a tiny model, made when it is first asked for."""
    base = tmp_path_factory.mktemp("checkpoints")
    made: dict[str, Path] = {}

    def make(name: str, config: PreTrainedConfig | None = None) -> str:
        if name not in made:
            made[name] = tiny.make_checkpoint(base / name.replace(" ", "-"), config or tiny.FAMILIES[name])
        return str(made[name])

    return make


@pytest.fixture(scope="session")
def llama_3(checkpoint: Checkpoint) -> str:
    """For three ranks: 6 heads, 3 KV heads."""
    return checkpoint("llama-3", tiny.llama(heads=6, kv_heads=3, hidden_size=96))


@pytest.fixture(scope="session")
def llama_4(checkpoint: Checkpoint) -> str:
    """For up to four ranks: 4 heads, 4 KV heads."""
    return checkpoint("llama-4", tiny.llama(heads=4, kv_heads=4))


@pytest.fixture(scope="session")
def llama_4_of_2(checkpoint: Checkpoint) -> str:
    """4 heads, 2 KV heads: on four ranks each KV head lives twice."""
    return checkpoint("llama-4-of-2", tiny.llama(heads=4, kv_heads=2))
