"""Real engines that recompute a part of what was lost, or all of it: the same tokens, whatever the bits were."""

from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from scene import Scene, Stage, decoding, running

from ghostserve.engine.config import EngineConfig
from ghostserve.errors import ConfigError


def test_rates_decide(llama_3: str, tmp_path: Path) -> None:
    """First nothing is known, so all is rebuilt; on a machine told to rebuild slowly, parts are recomputed."""
    with running(tmp_path / "points", model=llama_3, tensor_parallel_size=3, parity="rs:1") as stage:
        first = stage.scene()
        first.stream(2, prompt=100, tokens=12)
        first.when(decoding(4)).kill(1)
        first.finish(recoveries=1)
        assert first.recoveries[0].recomputed_slots == 0
        assert any("were measured yet" in reason for reason in first.recoveries[0].plan)
        first.assert_undisturbed()
        book = stage.engine.coordinator._driver.rates
        measured = book.rates()
        assert measured is not None
        assert measured.slot > 0
        book.saw_rebuild(1, 2 * 50 * (measured.step + measured.token))  # a slot costs as much as fifty tokens
        second = stage.scene()
        second.stream(2, prompt=100, tokens=12)
        second.when(decoding(4)).kill(1)
        second.finish(recoveries=1)
        record = second.recoveries[0]
        assert record.recomputed_slots + record.rejected_slots > 0
        assert record.predicted_seconds is not None
        second.assert_undisturbed()


def test_without_the_refill_tokens_differ(llama_4: str, tmp_path: Path) -> None:
    with running(
        tmp_path / "points", model=llama_4, tensor_parallel_size=2, standbys=1, recovery="recompute", skip_rebuild=True
    ) as stage:
        scene = stage.scene()
        scene.stream(3, prompt=60, tokens=16)
        scene.when(decoding(6)).kill(1)
        scene.finish(recoveries=1)
        scene.assert_delivered()
        assert {d.disturbed.request_id for d in scene.compare().differences} == {s.request_id for s in scene.streams}


def test_other_bits_are_rebuilt(llama_4: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other tokens are run, so every rank comes to other bits: survivors keep theirs, what was lost is rebuilt."""
    with running(tmp_path / "points", model=llama_4, tensor_parallel_size=2, standbys=1, recovery="recompute") as stage:
        serving = stage.engine.coordinator.serving
        honest = serving.part_again

        def spoilt(part):  # type: ignore[no-untyped-def]
            again, ranges = honest(part)
            return msgspec.structs.replace(again, token_ids=tuple(t ^ 1 for t in again.token_ids)), ranges

        monkeypatch.setattr(serving, "part_again", spoilt)
        scene = stage.scene()
        scene.stream(3, prompt=60, tokens=16)
        scene.when(decoding(6)).kill(1)
        scene.finish(recoveries=1)
        (record,) = scene.recoveries
        assert record.recomputed_slots == record.recomputed_requests == 0
        assert record.rejected_slots > 0
        scene.assert_rebuilt(1)
        scene.assert_undisturbed()


def test_an_unknown_policy_is_refused(llama_4: str) -> None:
    with pytest.raises(ConfigError, match="recovery 'both' is unknown; allowed: hybrid, rebuild, recompute"):
        EngineConfig(model=llama_4, recovery="both")  # type: ignore[arg-type]


# ---- one engine for several kills; last, as it starts standbys when it likes


@pytest.fixture(scope="module")
def stage(llama_3: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    folder = tmp_path_factory.mktemp("points")
    with running(folder, model=llama_3, tensor_parallel_size=3, parity="rs:2", recovery="recompute") as stage:
        yield stage


def assert_recomputed_slots(scene: Scene, *, some: bool = True) -> None:
    for record in scene.recoveries:
        assert record.recomputed_requests == 0
        assert (record.recomputed_slots > 0) is some
        assert record.refill_seconds > 0
    scene.assert_undisturbed()


@pytest.mark.parametrize("ranks", [(1,), (0, 2)], ids=str)
def test_everything_is_run_again(stage: Stage, ranks: tuple[int, ...]) -> None:
    scene = stage.scene()
    scene.stream(1, prompt=200, tokens=12)
    scene.stream(2, prompt=30, tokens=16)
    scene.when(decoding(6)).kill(*ranks)
    scene.finish()
    assert_recomputed_slots(scene)


@pytest.mark.parametrize("point", ["recompute.begin[0]", "recompute.begin[1]", "rebuild.end[2]"])
def test_another_death_in_between(stage: Stage, point: str) -> None:
    """What survivors have written over by then is put back; the next attempt only rebuilds."""
    scene = stage.scene()
    scene.stream(1, prompt=200, tokens=12)
    scene.stream(2, prompt=30, tokens=16)
    scene.when(decoding(6)).kill(2)
    scene.arm(point)
    scene.finish()
    last = scene.recoveries[-1]
    assert last.recomputed_requests == last.recomputed_slots == 0
    assert any("was set to rebuild" in reason for reason in last.plan)
    scene.assert_undisturbed()
