"""Other ways to fail than to be killed, and other moments: idle, hanging, raising, the standby, clients that leave."""

import os
import signal
import time
from collections.abc import Iterator

import pytest
from scene import Stage, decoding, phase, replaying, running

from ghostserve.engine.pulse import Look, PulseWatch


@pytest.fixture(scope="module")
def stage(llama_4: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    folder = tmp_path_factory.mktemp("points")
    with running(folder, model=llama_4, tensor_parallel_size=2, parity="xor", step_deadline=2.0) as stage:
        yield stage


@pytest.mark.parametrize("rank", [0, 1])
def test_killed_when_idle(stage: Stage, rank: int) -> None:
    scene = stage.scene()
    scene.stream(2, tokens=5)
    scene.finish(recoveries=0)
    scene.kill(rank)
    scene.stream(2, tokens=5)  # comes while the engine recovers
    scene.finish(recoveries=1)
    assert scene.recoveries[0].lost_ranks == [rank]
    scene.assert_undisturbed()


@pytest.mark.parametrize("rank", [0, 1])
def test_stopped_when_idle(stage: Stage, rank: int) -> None:
    """Found although nobody waits for it, before a client has to."""
    scene = stage.scene()
    scene.stream(2, tokens=5)
    scene.finish(recoveries=0)
    stage.signal(rank, signal.SIGSTOP)
    stage.until(lambda: scene.recoveries, "nobody noticed")
    scene.stream(2, tokens=5)
    scene.finish(recoveries=1)
    assert scene.recoveries[0].lost_ranks == [rank]
    assert "hangs" in scene.recoveries[0].reason
    scene.assert_undisturbed()


@pytest.mark.parametrize("rank", [0, 1])
def test_stopped_past_the_step_deadline(stage: Stage, rank: int) -> None:
    scene = stage.scene()
    scene.stream(4)
    scene.when(decoding(8)).stop(rank)
    scene.finish(recoveries=1)
    scene.assert_rebuilt(rank)
    assert "hangs" in scene.recoveries[0].reason
    scene.assert_undisturbed()


def test_stopped_with_its_part_done_while_the_others_are_idle(stage: Stage) -> None:
    scene = stage.scene()
    scene.stream(4)
    scene.when(decoding(8)).arm("step.end[0]", "stop")
    scene.finish(recoveries=1)
    scene.assert_rebuilt(0)
    assert scene.recoveries[0].lost_ranks == [0], "nobody else was to blame"
    scene.assert_undisturbed()


def test_stopped_while_it_replays(stage: Stage) -> None:
    scene = stage.scene()
    scene.stream(4)
    scene.when(replaying).stop(0)
    scene.when(decoding(8)).kill(1)
    scene.finish(recoveries=1)
    assert "hangs" in scene.recoveries[0].reason
    scene.assert_undisturbed()


def test_busy_elsewhere_past_the_step_deadline(stage: Stage) -> None:
    scene = stage.scene()
    scene.stream(4)
    scene.when(decoding(8)).arm("step.begin[1]", "sleep 600")
    scene.finish(recoveries=1)
    scene.assert_rebuilt(1)
    assert "hangs" in scene.recoveries[0].reason
    scene.assert_undisturbed()


def test_a_flush_that_hangs(stage: Stage) -> None:
    scene = stage.scene()
    scene.stream(2, tokens=120)
    scene.when(decoding(8)).arm("flush.encoded[1]", "sleep 600")
    scene.finish(recoveries=1)
    scene.assert_rebuilt(1)
    scene.assert_undisturbed()


@pytest.mark.parametrize("point", ["step.begin[0]", "step.end[1]", "flush.encoded[0]"])
def test_a_worker_that_raises(stage: Stage, point: str) -> None:
    scene = stage.scene()
    scene.stream(4)
    scene.when(decoding(8)).arm(point, "raise")
    scene.finish(recoveries=1)
    scene.assert_rebuilt(int(point[-2]))
    assert "failpoint" in scene.recoveries[0].reason
    scene.assert_undisturbed()


def test_the_standbys_themselves_are_killed(stage: Stage) -> None:
    scene = stage.scene(standbys=2)
    dead = [standby.pid for standby in stage.engine.status().standbys]
    scene.stream(2, tokens=60)
    scene.when(decoding(4)).do(lambda: [os.kill(pid, signal.SIGKILL) for pid in dead])
    scene.when(decoding(8)).kill(1)  # now nobody is ready to take the rank
    scene.finish(recoveries=1)
    scene.assert_rebuilt(1)
    scene.assert_undisturbed()
    stage.until(lambda: stage.calm(2), "new standbys never came")
    assert not {standby.pid for standby in stage.engine.status().standbys} & set(dead)


def test_standbys_that_hang_are_replaced_before_anybody_needs_them(stage: Stage) -> None:
    scene = stage.scene(standbys=2)
    hung = {standby.pid for standby in stage.engine.status().standbys}
    for pid in hung:
        os.kill(pid, signal.SIGSTOP)
    stage.until(lambda: not hung & {s.pid for s in stage.engine.status().standbys}, "nobody noticed")
    assert stage.engine.status().state == "serving", "no rank was lost"
    scene = stage.scene(standbys=1)
    scene.stream(2, tokens=40)
    scene.when(decoding(8)).kill(0)
    scene.finish(recoveries=1)
    scene.assert_rebuilt(0)
    scene.assert_undisturbed()


def test_a_standby_that_has_just_begun_to_hang_takes_a_rank(stage: Stage) -> None:
    """It can't be known yet when the rank is lost: what finds it is not the phase's deadline, of minutes."""
    scene = stage.scene(standbys=1)
    waiting = [standby.pid for standby in stage.engine.status().standbys]
    scene.stream(2, tokens=40)
    scene.when(decoding(8)).do(lambda: [os.kill(pid, signal.SIGSTOP) for pid in waiting])
    scene.when(decoding(8)).kill(0)
    scene.finish(recoveries=1)
    scene.assert_rebuilt(0)
    assert scene.recoveries[0].seconds < stage.config.phase_deadline / 4
    scene.assert_undisturbed()


def test_standbys_that_nobody_asks_hang_on(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """The twin."""
    stage.scene(standbys=2)
    monkeypatch.setattr(PulseWatch, "look", lambda self, workers, now: Look((), ()))
    hung = {standby.pid for standby in stage.engine.status().standbys}
    for pid in hung:
        os.kill(pid, signal.SIGSTOP)
    time.sleep(3 * stage.config.step_deadline)
    assert {standby.pid for standby in stage.engine.status().standbys} == hung
    for pid in hung:
        os.kill(pid, signal.SIGCONT)


@pytest.mark.parametrize("moment", ["releasing", "rebuilding", "replaying"])
def test_clients_that_leave_during_a_recovery_give_their_blocks_back(stage: Stage, moment: str) -> None:
    scene = stage.scene()
    staying, *leaving = scene.stream(4, prompt=60, tokens=40)
    scene.when(phase(moment)).do(lambda: [scene.abort(stream) for stream in leaving])
    scene.when(decoding(8)).kill(0)
    scene.finish(recoveries=1)
    scene.assert_undisturbed()
    assert len(staying.tokens) == 40
    stage.until(lambda: stage.engine.status().kv_cache_usage == 0, "blocks were not given back")
