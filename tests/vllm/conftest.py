"""What the tests with a running vLLM share: models made once, and the environment that they run in."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[1] / "engine"))  # its tiny models


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model for two or four ranks."""
    from models import make_llama

    return make_llama(tmp_path_factory.mktemp("checkpoints") / "llama")


@pytest.fixture(scope="session")
def vllm_environment() -> Iterator[None]:
    """For engines in this very process, and for reruns."""
    from vllm_server import VLLM_ENVIRONMENT

    with pytest.MonkeyPatch.context() as patch:
        for name, value in VLLM_ENVIRONMENT.items():
            patch.setenv(name, value)
        yield
