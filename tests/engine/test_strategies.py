"""The kills of test_fault_*.py, which run under parity, under the other strategies.

What is kept brings every stream on unchanged, what is not is recomputed.
"""

import resource
from collections.abc import Iterator
from pathlib import Path

import pytest
from scene import Stage, decoding, phase, prefilling, running

COPIES = ("replicate-host", "replicate-ssd")


def test_without_the_restore_tokens_differ(llama_4: str, tmp_path: Path) -> None:
    folder = tmp_path / "points"
    with running(
        folder, model=llama_4, tensor_parallel_size=2, standbys=1, protect="replicate-ssd", skip_rebuild=True
    ) as stage:
        scene = stage.scene()
        scene.stream(4, prompt=60, tokens=24)
        scene.when(decoding(8)).kill(1)
        scene.finish(recoveries=1)
        scene.assert_delivered()
        assert {d.disturbed.request_id for d in scene.compare().differences} == {s.request_id for s in scene.streams}


def test_nothing_kept_is_recomputed(llama_4: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with running(tmp_path, model=llama_4, tensor_parallel_size=2, protect="none") as stage:
        scene = stage.scene()
        scene.stream(4, prompt=60, tokens=24)
        scene.when(decoding(8)).kill(1)
        scene.finish(recoveries=1)
        scene.assert_delivered()
        scene.assert_recomputed(caplog, "1 data shards are lost, parity covers 0")
        status = stage.engine.status()
        assert (status.protect, status.parity_bytes, status.disk_bytes) == ("none", 0, 0)


def test_a_disk_that_fails_leaves_slots_unprotected(
    llama_4: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The copies' file is closed behind the workers' back: writes fail, requests go on, a kill is recomputed."""
    with running(tmp_path, model=llama_4, tensor_parallel_size=2, protect="replicate-ssd") as stage:
        break_disk(stage)
        scene = stage.scene()
        scene.stream(4, prompt=60, tokens=24)
        scene.when(decoding(8)).kill(1)
        scene.finish(recoveries=1)
        scene.assert_delivered()
        assert stage.engine.status().counters["failed_flushes"] > 0
        assert any("its slots stay unprotected" in message for message in caplog.messages)
        scene.assert_recomputed(caplog, "have no parity")


def break_disk(stage: Stage) -> None:
    """From now on the file takes no byte: a limit on file sizes for every worker, as a full disk would refuse."""
    status = stage.engine.status()
    for pid in [rank.pid for rank in status.ranks] + [standby.pid for standby in status.standbys]:
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (0, 0))


# ---- one engine for several kills; last, as it starts standbys when it likes


@pytest.fixture(scope="module", params=COPIES)
def stage(request: pytest.FixtureRequest, llama_3: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    folder = tmp_path_factory.mktemp("points")
    with running(folder, model=llama_3, tensor_parallel_size=3, protect=request.param) as stage:
        assert stage.engine.status().protect == request.param
        yield stage


@pytest.mark.parametrize("rank", [0])
def test_killed_in_the_prefill_of_a_long_prompt(stage: Stage, rank: int) -> None:
    scene = stage.scene()
    scene.stream(2, prompt=20, tokens=20)
    scene.stream(1, prompt=300, tokens=10)
    scene.when(prefilling(at_least=100)).kill(rank)
    scene.finish(recoveries=1)
    scene.assert_rebuilt(rank)
    scene.assert_undisturbed()


def test_killed_while_all_decode(stage: Stage) -> None:
    scene = stage.scene()
    scene.stream(6, prompt=30, tokens=30)
    scene.when(decoding(10)).kill(1)
    scene.finish(recoveries=1)
    scene.assert_rebuilt(1)
    scene.assert_undisturbed()


@pytest.mark.parametrize("point", ["flush.committed[2]"])
def test_killed_during_a_flush(stage: Stage, point: str) -> None:
    scene = stage.scene()
    scene.stream(4, prompt=30, tokens=30)
    scene.when(decoding(5)).arm(point)
    scene.finish(recoveries=1)
    scene.assert_rebuilt(int(point[-2]))
    scene.assert_undisturbed()


def test_all_at_once(stage: Stage) -> None:
    """No survivor is needed: copies stand alone."""
    scene = stage.scene()
    scene.stream(4, prompt=60, tokens=24)
    scene.when(decoding(8)).kill(0, 1, 2)
    scene.finish()
    assert sum(record.recomputed_requests for record in scene.recoveries) == 0
    assert sum(record.bytes_rebuilt for record in scene.recoveries) > 0
    scene.assert_undisturbed()


def test_two_at_once(stage: Stage) -> None:
    scene = stage.scene()
    scene.stream(4, prompt=60, tokens=24)
    scene.when(decoding(8)).kill(0, 2)
    scene.finish()
    assert sum(record.recomputed_requests for record in scene.recoveries) == 0
    scene.assert_undisturbed()


def test_another_during_the_recovery_of_the_first(stage: Stage) -> None:
    scene = stage.scene()
    scene.stream(4, prompt=60, tokens=24)
    scene.when(decoding(8)).kill(1)
    scene.when(phase("rebuilding")).kill(2)
    scene.finish()
    assert sum(record.recomputed_requests for record in scene.recoveries) == 0
    scene.assert_undisturbed()
