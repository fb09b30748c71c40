"""More ranks are lost than parity covers: requests begin again from their tokens, and finish with the same ones."""

from collections.abc import Iterator

import pytest
from scene import Stage, decoding, phase, prefilling, replaying, running


class TestWithOneParityShard:
    @pytest.fixture(scope="class")
    def stage(self, llama_3: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
        folder = tmp_path_factory.mktemp("points")
        with running(folder, model=llama_3, tensor_parallel_size=3, parity="rs:1", encoder="striped") as stage:
            yield stage

    @pytest.mark.parametrize("ranks", [(0, 1), (0, 1, 2)])
    def test_too_many_at_once(self, stage: Stage, caplog: pytest.LogCaptureFixture, ranks: tuple[int, ...]) -> None:
        scene = stage.scene()
        scene.stream(4, prompt=40, tokens=24)
        scene.when(decoding(8)).kill(*ranks)
        scene.finish()
        scene.assert_recomputed(caplog, f"{len(ranks)} data shards are lost, parity covers 1")
        scene.assert_undisturbed()

    def test_too_many_at_once_in_prefill(self, stage: Stage, caplog: pytest.LogCaptureFixture) -> None:
        scene = stage.scene()
        scene.stream(3, prompt=200, tokens=8)
        scene.when(prefilling(at_least=64)).kill(1, 2)
        scene.finish()
        scene.assert_recomputed(caplog, "2 data shards are lost, parity covers 1")
        scene.assert_undisturbed()

    @pytest.mark.parametrize("point", ["release.end[1]", "join.begin[2]"])
    def test_a_survivor_dies_before_the_rebuild(
        self, stage: Stage, caplog: pytest.LogCaptureFixture, point: str
    ) -> None:
        scene = stage.scene()
        scene.stream(4, prompt=40, tokens=24)
        scene.when(decoding(8)).arm(point)
        scene.when(decoding(8)).kill(0)
        scene.finish()
        scene.assert_recomputed(caplog, "2 data shards are lost, parity covers 1")
        scene.assert_undisturbed()

    @pytest.mark.parametrize("point", ["load.begin[-1]", "join.begin[0]", "rebuild.begin[0]", "rebuild.end[0]"])
    def test_the_newcomer_dies_and_one_parity_shard_still_suffices(self, stage: Stage, point: str) -> None:
        scene = stage.scene()
        scene.stream(4, prompt=40, tokens=24)
        scene.when(decoding(8)).arm(point)
        scene.when(decoding(8)).kill(0)
        scene.finish(recoveries=1)
        scene.assert_rebuilt(0)
        scene.assert_undisturbed()

    def test_a_survivor_dies_after_the_rebuild_and_one_parity_shard_still_suffices(self, stage: Stage) -> None:
        scene = stage.scene()
        scene.stream(4, prompt=40, tokens=24)
        scene.when(replaying).kill(1)
        scene.when(decoding(8)).kill(0)
        scene.finish(recoveries=1)
        assert scene.recoveries[0].lost_ranks == [0, 1]
        assert scene.recoveries[0].recomputed_requests == 0
        scene.assert_undisturbed()

    def test_all_die_again_while_they_recompute(self, stage: Stage, caplog: pytest.LogCaptureFixture) -> None:
        scene = stage.scene()
        scene.stream(4, prompt=100, tokens=12)
        scene.when(phase("rejoining")).arm("step.begin[2]")
        scene.when(decoding(6)).kill(0, 1)
        scene.finish()
        scene.assert_recomputed(caplog, "2 data shards are lost, parity covers 1")
        scene.assert_undisturbed()


class TestWithoutParity:
    @pytest.fixture(scope="class")
    def stage(self, llama_4: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
        folder = tmp_path_factory.mktemp("points")
        with running(folder, model=llama_4, tensor_parallel_size=2, parity="none", standbys=0) as stage:
            yield stage

    def test_a_death_is_recomputed(self, stage: Stage, caplog: pytest.LogCaptureFixture) -> None:
        scene = stage.scene()
        scene.stream(4, prompt=80, tokens=20)
        scene.when(decoding(8)).kill(1)
        scene.finish(recoveries=1)
        scene.assert_recomputed(caplog, "1 data shards are lost, parity covers 0")
        scene.assert_undisturbed()


class TestWithTooLittleHostMemory:
    @pytest.fixture(scope="class")
    def stage(self, llama_4: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
        folder = tmp_path_factory.mktemp("points")
        with running(
            folder, model=llama_4, tensor_parallel_size=2, parity="rs:1", parity_memory=100_000, standbys=1
        ) as stage:
            yield stage

    @pytest.mark.parametrize("rank", [0, 1])
    def test_the_longest_are_rebuilt_and_the_others_recomputed(
        self, stage: Stage, caplog: pytest.LogCaptureFixture, rank: int
    ) -> None:
        assert stage.engine.coordinator._memory.num_parity_blocks < 12
        scene = stage.scene()
        scene.stream(1, prompt=80, tokens=30)
        scene.stream(5, prompt=20, tokens=30)
        scene.when(decoding(12)).kill(rank)
        scene.finish(recoveries=1)
        scene.assert_recomputed(caplog, "have no parity")
        assert scene.recoveries[0].recomputed_requests < 6
        assert scene.recoveries[0].bytes_rebuilt > 0
        scene.assert_undisturbed()
