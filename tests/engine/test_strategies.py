"""The same kills under every strategy, and to each the same question: did it keep what it promises?

What it covers comes back bit for bit and every stream goes on; what it does not is recomputed from the tokens, and then
too each client has what undisturbed workers draw from the same schedule, each token once.

Parity's own kills, in more variants, are test_fault_*.py: here its part is `slow`. So is for all what costs many kills:
each one is a worker's imports.
"""

import resource
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from scene import Scene, Stage, decoding, phase, possessions, prefilling, replaying, running

slow = pytest.mark.slow
COPIES = ("replicate-host", "replicate-ssd")
COVERS = {"parity": 2, "replicate-host": 3, "replicate-ssd": 3, "none": 0}
"""Of three ranks, how many may be lost at once."""


@dataclass
class Promise:
    """An engine under one strategy, for several scenes."""

    stage: Stage
    name: str
    log: pytest.LogCaptureFixture

    @property
    def keeps(self) -> bool:
        return COVERS[self.name] > 0

    def kept(self, scene: Scene, *lost: int) -> None:
        """These ranks were lost before anything could be rebuilt in between, and the promise holds."""
        records = scene.recoveries
        assert {rank for record in records for rank in record.lost_ranks} == set(lost)
        rebuilt, recomputed = (
            sum(getattr(record, what) for record in records) for what in ("bytes_rebuilt", "recomputed_requests")
        )
        if len(lost) <= COVERS[self.name]:
            assert recomputed == 0
            assert 0 < rebuilt <= scene.bytes_wiped
        else:
            assert rebuilt == 0
            scene.assert_recomputed(self.log, f"{len(lost)} data shards are lost, parity covers {COVERS[self.name]}")
        self.delivered(scene)

    def delivered(self, scene: Scene) -> None:
        """Each token once, and the one that nobody's death would have changed."""
        scene.assert_undisturbed()
        assert drawn_once(scene)


def drawn_once(scene: Scene) -> bool:
    """Were the draws 0, 1, 2, ... of every request delivered, each once and in order?"""
    draws: dict[str, list[int]] = {}
    for entry in scene.recording:
        for part in entry.plan.parts:
            if part.draw is not None and part.request_id in (entry.accepted or {}):
                draws.setdefault(part.request_id, []).append(part.draw.counter)
    return draws == {s.request_id: list(range(len(s.outputs))) for s in scene.streams}


@pytest.fixture(scope="module", params=[*COPIES, "none", pytest.param("parity", marks=slow)])
def engine(
    request: pytest.FixtureRequest, llama_3: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Stage, str]]:
    settings = {"parity": "rs:2"} if request.param == "parity" else {}
    folder, disk = tmp_path_factory.mktemp("points"), tmp_path_factory.mktemp("disk")
    with running(
        folder,
        model=llama_3,
        tensor_parallel_size=3,
        protect=request.param,
        protect_folder=str(disk),
        step_deadline=2.0,
        **settings,
    ) as stage:
        assert stage.engine.status().protect == request.param
        yield stage, request.param
    assert list(disk.iterdir()) == []


@pytest.fixture
def promise(engine: tuple[Stage, str], caplog: pytest.LogCaptureFixture) -> Promise:
    return Promise(*engine, caplog)


# ---- one rank


@pytest.mark.parametrize("rank", [0, pytest.param(1, marks=slow), pytest.param(2, marks=slow)])
def test_killed_in_the_prefill_of_a_long_prompt(promise: Promise, rank: int) -> None:
    scene = promise.stage.scene()
    scene.stream(2, prompt=20, tokens=20)
    scene.stream(1, prompt=300, tokens=10)
    scene.when(prefilling(at_least=100)).kill(rank)
    scene.finish(recoveries=1)
    promise.kept(scene, rank)


@pytest.mark.parametrize("rank", [1, pytest.param(0, marks=slow), pytest.param(2, marks=slow)])
def test_killed_while_all_decode(promise: Promise, rank: int) -> None:
    scene = promise.stage.scene()
    scene.stream(6, prompt=30, tokens=30)
    scene.when(decoding(10)).kill(rank)
    scene.finish(recoveries=1)
    promise.kept(scene, rank)


@pytest.mark.parametrize(
    "point",
    ["flush.committed[2]", "flush.begin[0]", "flush.encoded[1]", "step.end[1]"],
)
@slow
def test_killed_during_a_flush_and_right_after_a_step(promise: Promise, point: str) -> None:
    if not promise.keeps and point.startswith("flush"):
        point = f"step.end[{point[-2]}]"  # who keeps nothing flushes nothing
    scene = promise.stage.scene()
    scene.stream(4, prompt=30, tokens=30)
    scene.when(decoding(5)).arm(point)
    scene.finish(recoveries=1)
    promise.kept(scene, int(point[-2]))


@slow
@pytest.mark.parametrize("rank", [0, 2])
def test_killed_when_idle(promise: Promise, rank: int) -> None:
    """Nobody's KV is lost, and who comes while the engine recovers is served."""
    scene = promise.stage.scene()
    scene.stream(2, tokens=5)
    scene.finish(recoveries=0)
    scene.kill(rank)
    scene.stream(2, tokens=5)
    scene.finish(recoveries=1)
    assert scene.recoveries[0].lost_ranks == [rank]
    assert scene.recoveries[0].recomputed_requests == 0
    promise.delivered(scene)


@slow
@pytest.mark.parametrize("rank", [1, 0])
def test_stopped_past_the_step_deadline(promise: Promise, rank: int) -> None:
    scene = promise.stage.scene()
    scene.stream(4)
    scene.when(decoding(8)).stop(rank)
    scene.finish(recoveries=1)
    assert "hangs" in scene.recoveries[0].reason
    promise.kept(scene, rank)


# ---- several


@pytest.mark.parametrize("ranks", [pytest.param((0, 2), marks=slow), (0, 1, 2)], ids=str)
def test_several_at_once(promise: Promise, ranks: tuple[int, ...]) -> None:
    """All three: copies need no survivor; of parity it is one too many."""
    scene = promise.stage.scene()
    scene.stream(4, prompt=60, tokens=24)
    scene.when(decoding(8)).kill(*ranks)
    scene.finish()
    promise.kept(scene, *ranks)


@pytest.mark.parametrize(
    "point",
    [
        "join.begin[2]",
        pytest.param("release.end[1]", marks=slow),
        pytest.param("load.begin[-1]", marks=slow),
        pytest.param("join.begin[0]", marks=slow),
    ],
)
def test_second_before_anything_is_restored(promise: Promise, point: str) -> None:
    """-1 is the newcomer, which then has no rank yet; it takes that of the first."""
    scene = promise.stage.scene()
    scene.stream(4, prompt=40, tokens=24)
    scene.when(decoding(8)).arm(point)
    scene.when(decoding(8)).kill(0)
    scene.finish()
    promise.kept(scene, *{0, max(0, int(point.partition("[")[2][:-1]))})


@slow
@pytest.mark.parametrize("point", ["rebuild.begin[0]", "rebuild.end[0]"])
def test_second_during_the_rebuild(promise: Promise, point: str) -> None:
    if not promise.keeps:
        point = "join.begin[0]"  # there is no rebuild: the newcomer dies before it recomputes
    scene = promise.stage.scene()
    scene.stream(4, prompt=40, tokens=24)
    scene.when(decoding(8)).arm(point)
    scene.when(decoding(8)).kill(0)
    scene.finish()
    promise.kept(scene, 0)


@slow
@pytest.mark.parametrize("point", ["step.begin[1]", "step.end[2]"])
def test_second_while_the_first_is_replayed_or_recomputed(promise: Promise, point: str) -> None:
    scene = promise.stage.scene()
    scene.stream(4, prompt=40, tokens=24)
    scene.when(phase("replaying" if promise.keeps else "rejoining")).arm(point)
    scene.when(decoding(8)).kill(0)
    scene.finish()
    recomputed = sum(record.recomputed_requests for record in scene.recoveries)
    assert (recomputed == 0) == promise.keeps
    promise.delivered(scene)


@slow
def test_stopped_while_it_replays(promise: Promise) -> None:
    if not promise.keeps:
        pytest.skip("without a watermark there is nothing to replay")
    scene = promise.stage.scene()
    scene.stream(4)
    scene.when(replaying).stop(0)
    scene.when(decoding(8)).kill(1)
    scene.finish(recoveries=1)
    assert "hangs" in scene.recoveries[0].reason
    promise.delivered(scene)


# ---- what is left


def test_kills_leave_nothing_behind(promise: Promise) -> None:
    """While it lives; when it has stopped, `running` looks again, and `engine` at the disk."""
    stage = promise.stage
    scene = stage.scene(standbys=2)
    stage.compare([])  # its workers stay: they are no leak
    settled = held()
    for death in range(2):
        scene.stream(2, prompt=20, tokens=12)
        scene.when(decoding(6)).kill(death % 3)
        scene.finish(recoveries=death + 1)
    stage.until(lambda: stage.calm(2), "the standbys never came back")
    assert held() == settled
    stage.until(lambda: stage.engine.status().kv_cache_usage == 0, "blocks were not given back")
    promise.delivered(scene)


def held() -> Counter[str]:
    """Descriptors, threads and shared memory by name, children by number."""
    return Counter(name if not name.startswith("child") else "child" for name in possessions().elements())


# ---- the twins


@pytest.mark.parametrize("protect", ["replicate-ssd", pytest.param("replicate-host", marks=slow)])
def test_without_the_restore_tokens_differ(llama_4: str, tmp_path: Path, protect: str) -> None:
    with running(
        tmp_path / "points", model=llama_4, tensor_parallel_size=2, standbys=1, protect=protect, skip_rebuild=True
    ) as stage:
        scene = stage.scene()
        scene.stream(4, prompt=60, tokens=24)
        scene.when(decoding(8)).kill(1)
        scene.finish(recoveries=1)
        scene.assert_delivered()
        assert {d.disturbed.request_id for d in scene.compare().differences} == {s.request_id for s in scene.streams}


def test_a_token_sent_twice_or_changed_is_seen(llama_4: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """What recompute could do wrong, done to the record of a right one."""
    with running(tmp_path / "points", model=llama_4, tensor_parallel_size=2, protect="none") as stage:
        promise = Promise(stage, "none", caplog)
        scene = stage.scene()
        scene.stream(4, prompt=60, tokens=24)
        scene.when(decoding(8)).kill(1)
        scene.finish(recoveries=1)
        promise.kept(scene, 1)
        status = stage.engine.status()
        assert (status.protect, status.parity_bytes, status.disk_bytes) == ("none", 0, 0)

        stream, recording = scene.streams[0], stage.engine.coordinator.recording
        own = [entry for entry in scene.recording if stream.request_id in (entry.accepted or {})]
        # Sent twice by the server.
        stream.outputs.insert(10, stream.outputs[9])
        with pytest.raises(AssertionError):
            scene.assert_delivered()
        del stream.outputs[10]
        # Drawn and delivered twice.
        recording.append(own[9])
        assert not drawn_once(scene)
        recording.pop()
        # Another one than its step draws.
        right, wrong = own[10].accepted, own[9].accepted
        own[10].accepted = right | {stream.request_id: wrong[stream.request_id]}
        assert [d.disturbed.request_id for d in scene.compare().differences] == [stream.request_id]
        own[10].accepted = right
        promise.delivered(scene)


def test_a_disk_that_fails_leaves_slots_unprotected(
    llama_4: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The copies' file is closed behind the workers' back: writes fail, requests go on, a kill is recomputed."""
    with running(tmp_path, model=llama_4, tensor_parallel_size=2, protect="replicate-ssd") as stage:
        scene = stage.scene(standbys=2)
        break_disk(stage)
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
