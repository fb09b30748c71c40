"""TP 4, fp32, two parities: two ranks die at once, or one during the other's recovery; three are one too many.

The tests are scenes of one server's life; the last one runs the schedule of all of them again, undisturbed.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("vllm")

from life import Scene
from oracle import assert_undisturbed
from streams import LONG
from vllm_server import VllmServer

pytestmark = pytest.mark.vllm


@pytest.fixture(scope="module")
def server(llama: Path, tmp_path_factory: pytest.TempPathFactory, vllm_environment: None) -> Iterator[VllmServer]:
    options = ["--max-num-batched-tokens", "512"]
    settings = {"tensor_parallel": 4, "dtype": "float32", "parity": "rs:2", "standbys": 2}
    with VllmServer(llama, tmp_path_factory.mktemp("serve"), *options, **settings) as server:
        yield server


def test_two_die_at_once_while_all_decode(server: VllmServer) -> None:
    scene = Scene(server, standbys=2)
    scene.streams.start(tokens=LONG)
    scene.streams.when_all_have(6)
    server.kill(1, 3)
    scene.finish()
    scene.assert_rebuilt(1, 3)


def test_two_die_at_once_while_long_prompts_are_read(server: VllmServer) -> None:
    scene = Scene(server, standbys=2)
    scene.streams.start([24] + [600] * 9, tokens=10)
    scene.streams.when_only_some_have_begun()
    server.kill(0, 2)
    scene.finish()
    scene.assert_rebuilt(0, 2)


def test_another_one_dies_during_a_recovery(server: VllmServer) -> None:
    scene = Scene(server, standbys=2)
    scene.streams.start(tokens=LONG)
    scene.streams.when_all_have(6)
    server.kill(2)
    server.wait_recovering()
    server.kill(0)
    scene.finish()
    scene.assert_rebuilt(0, 2)


def test_three_are_more_than_parity_covers(server: VllmServer) -> None:
    """No stream ends: requests are computed again from their tokens, and that is counted and logged."""
    scene = Scene(server, standbys=2)
    scene.streams.start(tokens=LONG, temperature=0.0)
    scene.streams.when_all_have(6)
    server.kill(0, 1, 2)
    scene.finish()
    assert {rank for record in scene.recoveries for rank in record.lost_ranks} == {0, 1, 2}
    assert sum(record.recomputed_requests for record in scene.recoveries) == 8
    assert "8 requests are computed again from their tokens: 3 data shards are lost" in server.log.read_text()


def test_after_that_parity_covers_again(server: VllmServer) -> None:
    scene = Scene(server, standbys=2)
    scene.streams.start(tokens=LONG, temperature=0.0)
    scene.streams.when_all_have(6)
    server.kill(3)
    scene.finish(recoveries=1)
    scene.assert_rebuilt(3)


def test_the_whole_life_is_what_an_undisturbed_one_would_have_been(server: VllmServer) -> None:
    server.close()
    assert not server.leftovers(), "\n".join(server.leftovers(0))
    assert_undisturbed(server.record)
