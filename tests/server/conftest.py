"""One real server on a free port for all tests of this folder."""

import time
from collections.abc import Callable, Iterator

import httpx
import openai
import pytest
from running_server import SETTINGS, RunningServer
from server_fakes import FakeEngine, make_tokenizer
from transformers import PreTrainedTokenizerFast


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    return make_tokenizer()


@pytest.fixture(scope="session")
def _engine(tokenizer: PreTrainedTokenizerFast) -> FakeEngine:
    return FakeEngine(tokenizer)


@pytest.fixture
def engine(_engine: FakeEngine) -> Iterator[FakeEngine]:
    _engine.reset()
    yield _engine
    _engine.reset()


@pytest.fixture(scope="session")
def server(_engine: FakeEngine) -> Iterator[RunningServer]:
    with RunningServer(_engine, SETTINGS) as running:
        yield running


@pytest.fixture(scope="session")
def http(server: RunningServer) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=20) as client:
        yield client


@pytest.fixture(scope="session")
def client(server: RunningServer) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=20) as client:
        yield client


@pytest.fixture(scope="session")
def eventually() -> Callable[[Callable[[], object]], None]:
    """Waits until a condition holds."""

    def wait(condition: Callable[[], object]) -> None:
        deadline = time.monotonic() + 10
        while not condition():
            assert time.monotonic() < deadline, "the condition never came true"
            time.sleep(0.01)

    return wait
