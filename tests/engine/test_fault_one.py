"""One rank dies, at any moment: the streams go on with the same tokens."""

import itertools
import time
from collections.abc import Iterator

import pytest
from scene import Stage, decoding, prefilling, running


@pytest.fixture(scope="module")
def stage(llama_3: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    with running(tmp_path_factory.mktemp("points"), model=llama_3, tensor_parallel_size=3, parity="rs:1") as stage:
        yield stage


def test_nobody_dies(stage: Stage) -> None:
    scene = stage.scene()
    scene.stream(4)
    scene.finish(recoveries=0)
    scene.assert_undisturbed()


@pytest.mark.parametrize("rank", [0, 1, 2])
def test_killed_in_the_prefill_of_a_long_prompt(stage: Stage, rank: int) -> None:
    scene = stage.scene()
    scene.stream(2, prompt=20, tokens=20)
    scene.stream(2, prompt=300, tokens=10)
    scene.when(prefilling(at_least=100)).kill(rank)
    scene.finish(recoveries=1)
    scene.assert_rebuilt(rank)
    scene.assert_undisturbed()


@pytest.mark.parametrize("rank", [0, 1, 2])
def test_killed_while_all_decode(stage: Stage, rank: int) -> None:
    scene = stage.scene()
    scene.stream(6, prompt=30, tokens=30)
    scene.when(decoding(10)).kill(rank)
    scene.finish(recoveries=1)
    scene.assert_rebuilt(rank)
    scene.assert_undisturbed()


@pytest.mark.parametrize(
    "point", ["flush.begin[0]", "flush.encoded[1]", "flush.committed[2]", "flush.encoded[0]", "step.end[1]"]
)
def test_killed_during_a_flush_and_right_after_a_step(stage: Stage, point: str) -> None:
    scene = stage.scene()
    scene.stream(4, prompt=30, tokens=30)
    scene.when(decoding(5)).arm(point)
    scene.finish(recoveries=1)
    scene.assert_rebuilt(int(point[-2]))
    scene.assert_undisturbed()


def test_killed_while_the_wall_clock_jumps(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """A day forth and a day back with every look at it: no deadline passes, and none is put off."""
    real, jumps = time.time, itertools.cycle([86_400.0, -86_400.0])
    monkeypatch.setattr(time, "time", lambda: real() + next(jumps))
    scene = stage.scene()
    scene.stream(4, prompt=30, tokens=30)
    scene.when(decoding(10)).kill(1)
    scene.finish(recoveries=1)
    scene.assert_rebuilt(1)
    assert 0 < scene.recoveries[0].seconds < 60
    scene.assert_undisturbed()
