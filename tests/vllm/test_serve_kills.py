"""vLLM's own server at TP 2, bf16, eight streams and more: a rank dies at any moment, and no client sees it.

The tests are scenes of one server's life; the last one runs the schedule of all of them again, undisturbed.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("vllm")

from life import Scene
from oracle import assert_undisturbed
from streams import LENGTHS, LONG
from vllm_server import VllmServer

pytestmark = pytest.mark.vllm

LONGEST = 850
"""Tokens of a stream that must not come to its end before its client hangs up: with its prompt they fit the context."""


@pytest.fixture(scope="module")
def server(llama: Path, tmp_path_factory: pytest.TempPathFactory, vllm_environment: None) -> Iterator[VllmServer]:
    folder = tmp_path_factory.mktemp("serve")
    with VllmServer(llama, folder, "--max-num-batched-tokens", "256", parity="rs:1", step_deadline=4) as server:
        yield server


def test_nobody_dies(server: VllmServer) -> None:
    scene = Scene(server)
    scene.streams.start()
    scene.finish(recoveries=0)


@pytest.mark.parametrize("rank", [0, 1])
def test_killed_while_long_prompts_are_read(server: VllmServer, rank: int) -> None:
    """600 tokens are three chunks."""
    scene = Scene(server)
    scene.streams.start([24] + [600] * 9, tokens=10)
    scene.streams.when_only_some_have_begun()
    server.kill(rank)
    scene.finish(recoveries=1)
    scene.assert_rebuilt(rank)


@pytest.mark.parametrize("rank", [0, 1])
def test_killed_while_all_decode(server: VllmServer, rank: int) -> None:
    scene = Scene(server)
    scene.streams.start(tokens=LONG)
    scene.streams.when_all_have(6)
    server.kill(rank)
    scene.finish(recoveries=1)
    scene.assert_rebuilt(rank)


@pytest.fixture(scope="module")
def owned(server: VllmServer) -> dict[str, int]:
    """What the server has after its first kills: what comes with a first time is there."""
    server.wait_recovered(0)
    server.wait_standbys(1)
    assert server.status().recoveries
    return server.possessions()


def test_killed_twice_in_a_row(server: VllmServer, owned: dict[str, int]) -> None:
    """The second time without a pause: as soon as the first recovery is over."""
    scene = Scene(server)
    scene.streams.start(tokens=200)
    scene.streams.when_all_have(6)
    server.kill(0)
    scene.wait_recovered(1)
    server.kill(1)
    scene.finish(recoveries=2)
    scene.assert_rebuilt(0, 1)


def test_the_newcomer_is_killed_during_its_recovery(server: VllmServer) -> None:
    scene = Scene(server)
    scene.streams.start(tokens=LONG)
    scene.streams.when_all_have(6)
    dead = server.status().ranks[1].pid
    server.kill(1)
    server.until(lambda: server.status().ranks[1].pid not in (0, dead), "nobody took the lost rank's place")
    assert server.status().state == "recovering"
    server.kill(1)
    scene.finish()
    scene.assert_rebuilt(1)


@pytest.mark.parametrize("rank", [0, 1])
def test_killed_while_idle(server: VllmServer, rank: int) -> None:
    """It is recovered before the next request comes, and what was cached is there."""
    scene = Scene(server)
    scene.streams.start([100] * 8, shared=96, tokens=4)
    scene.streams.finish()
    server.kill(rank)
    scene.wait_recovered(1)
    before = _cached_tokens(server)
    scene.streams.send([[*stream.prompt, 7, 8, 9] for stream in scene.streams.all], tokens=8)
    scene.finish(recoveries=1)
    assert _cached_tokens(server) - before >= 8 * 96


def test_frozen(server: VllmServer) -> None:
    """SIGSTOP: after the step's deadline the rank counts as lost."""
    scene = Scene(server)
    scene.streams.start(tokens=LONG)
    scene.streams.when_all_have(6)
    server.freeze(1)
    scene.finish(recoveries=1)
    scene.assert_rebuilt(1)


def _longest(index: int) -> list[int]:
    """How much each client wants: one of them as much as there can be."""
    return [LONGEST if i == index else LONG for i in range(len(LENGTHS))]


def test_killed_when_a_client_has_just_gone(server: VllmServer) -> None:
    scene = Scene(server)
    streams = scene.streams.start(tokens=_longest(3))
    scene.streams.when_all_have(6)
    streams[3].hang_up()
    server.kill(1)
    scene.finish(recoveries=1)
    scene.assert_rebuilt(1)
    assert len(streams[3].drawn) < LONGEST


def test_a_client_goes_during_a_recovery(server: VllmServer) -> None:
    scene = Scene(server)
    streams = scene.streams.start(tokens=_longest(2))
    scene.streams.when_all_have(6)
    server.kill(0)
    server.wait_recovering()
    streams[2].hang_up()
    scene.finish(recoveries=1)
    scene.assert_rebuilt(0)
    assert len(streams[2].drawn) < LONGEST


def test_killed_while_others_come_to_their_end(server: VllmServer) -> None:
    """With every step one request is through: the step that is lost is the last one of some."""
    scene = Scene(server)
    scene.streams.start([30] * 16, tokens=range(20, 36))
    scene.streams.when_one_is_over()
    server.kill(1)
    scene.finish(recoveries=1)
    scene.assert_rebuilt(1)


def test_killed_while_a_prefix_is_shared(server: VllmServer) -> None:
    """Blocks that belong to many requests at once are rebuilt once."""
    scene = Scene(server)
    before = _cached_tokens(server)
    scene.streams.start([300], shared=256, tokens=40)
    scene.streams.when_all_have(1)
    prefix = scene.streams.all[0].prompt[:256]
    scene.streams.send([prefix + [2 + i] * (20 + 10 * i) for i in range(8)], tokens=LONG)
    scene.streams.when_all_have(4)
    assert _cached_tokens(server) - before >= 8 * 256
    server.kill(0)
    scene.finish(recoveries=1)
    scene.assert_rebuilt(0)


def test_killed_in_the_first_step_of_all(server: VllmServer) -> None:
    scene = Scene(server)
    server.arm("step.begin[1]")
    scene.streams.start(tokens=8)
    scene.finish(recoveries=1)
    scene.assert_recovered(1)


def test_killed_while_requests_sample_with_their_own_seeds(server: VllmServer) -> None:
    """Short ones: vLLM can't cut prompts of such requests on the CPU."""
    scene = Scene(server)
    scene.streams.start([24] * 8, tokens=LONG, temperature=0.9, seed=7)
    scene.streams.when_all_have(6)
    server.kill(0)
    scene.finish(recoveries=1)
    scene.assert_rebuilt(0)


def test_the_other_one_is_killed_during_a_recovery(server: VllmServer) -> None:
    """Then all KV is gone, which is more than parity covers: requests are computed again, and go on.

    Random states are gone, too: here all are greedy.
    """
    scene = Scene(server)
    scene.streams.start(tokens=LONG, temperature=0.0)
    scene.streams.when_all_have(6)
    server.kill(0)
    server.wait_recovering()
    server.kill(1)
    scene.finish()
    assert sum(record.recomputed_requests for record in scene.recoveries) == len(scene.streams.all)
    assert "8 requests are computed again from their tokens" in server.log.read_text()


def test_nothing_has_gathered(server: VllmServer, owned: dict[str, int]) -> None:
    server.wait_recovered(10)
    server.wait_standbys(1)
    server.until(lambda: server.possessions() == owned, f"had {owned}, and never again", patience=10)


def test_the_whole_life_is_what_an_undisturbed_one_would_have_been(server: VllmServer) -> None:
    server.close()
    assert not server.leftovers(), "\n".join(server.leftovers(0))
    assert_undisturbed(server.record)


def _cached_tokens(server: VllmServer) -> float:
    """Tokens that vLLM found in its prefix cache, so far."""
    lines = server.get("/metrics").text.splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith("vllm:prefix_cache_hits_total"))
