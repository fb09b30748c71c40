"""A model that people know, on three ranks: SmolLM2 answers in chat while one of them dies."""

from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("vllm")

from life import Scene
from models import make_smollm2
from oracle import assert_undisturbed, recorded_tokens
from vllm_server import MODEL, VllmServer

from ghostserve.cli.bundled import bundled_model
from ghostserve.errors import CheckpointError

pytestmark = pytest.mark.vllm


@pytest.fixture(scope="module")
def smollm2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    try:
        bundled_model()
    except CheckpointError as error:
        pytest.skip(str(error))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GHOSTSERVE_CACHE", str(tmp_path_factory.mktemp("cache")))
        return make_smollm2()


@pytest.fixture(scope="module")
def server(smollm2: Path, tmp_path_factory: pytest.TempPathFactory, vllm_environment: None) -> Iterator[VllmServer]:
    """Started by the project's own command."""
    folder = tmp_path_factory.mktemp("serve")
    with VllmServer(smollm2, folder, tensor_parallel=3, dtype="float32", by_ghostserve=True) as server:
        yield server


def test_a_chat_goes_on_while_a_rank_dies(server: VllmServer) -> None:
    scene = Scene(server)
    scene.streams.start(tokens=30)
    question = [{"role": "user", "content": "Name three things that ghosts are said to do at night."}]
    answer = server.client.chat.completions.create(
        model=MODEL,
        messages=question,
        max_tokens=60,
        temperature=0.0,
        stream=True,
        extra_body={"return_token_ids": True},
    )
    text, tokens = "", []
    for chunk in answer:
        text += chunk.choices[0].delta.content or ""
        tokens += getattr(chunk.choices[0], "token_ids", None) or []  # the first chunk, with the role, has none
        if len(tokens) == 10:
            server.kill(1)
    scene.finish(recoveries=1)
    scene.assert_rebuilt(1)
    assert len(tokens) > 10
    assert tokens == recorded_tokens(server.record, chunk.id)
    assert len(text.split()) > 5


def test_the_whole_life_is_what_an_undisturbed_one_would_have_been(server: VllmServer) -> None:
    server.close()
    assert not server.leftovers(), "\n".join(server.leftovers(0))
    assert_undisturbed(server.record)
