"""A tiny checkpoint, and `ghostserve serve` as a process under limits."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[1] / "engine"))  # its tiny models


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> str:
    """For two ranks."""
    import tiny

    folder = tmp_path_factory.mktemp("checkpoints") / "tiny-llama"
    return str(tiny.make_checkpoint(folder, tiny.llama(heads=4, kv_heads=4, max_position_embeddings=2048)))


@pytest.fixture(autouse=True)
def shared_memory_as_before() -> Iterator[None]:
    before = sorted(os.listdir("/dev/shm"))
    yield
    assert sorted(os.listdir("/dev/shm")) == before
