"""A second rank dies while the first death is being recovered from, in every phase of it."""

from collections.abc import Iterator

import pytest
from scene import Stage, decoding, phase, running

# Where the second death strikes: (when the failpoint is set, its name). Rank 0 is the first to die.
DURING = {
    "a survivor has released": (decoding(8), "release.end[1]"),
    "the newcomer loads": (decoding(8), "load.begin[-1]"),
    "a survivor rejoins": (decoding(8), "join.begin[2]"),
    "the newcomer rejoins": (decoding(8), "join.begin[0]"),
    "the rebuild begins": (decoding(8), "rebuild.begin[0]"),
    "the rebuild ends": (decoding(8), "rebuild.end[0]"),
    "a survivor replays": (phase("replaying"), "step.begin[1]"),
    "the newcomer replays": (phase("replaying"), "step.begin[0]"),
    "a survivor has replayed": (phase("replaying"), "step.end[2]"),
}


class TestWithTwoParityShards:
    @pytest.fixture(scope="class", params=["rs:2", pytest.param("rdp", marks=pytest.mark.slow)])
    def stage(
        self, request: pytest.FixtureRequest, llama_3: str, tmp_path_factory: pytest.TempPathFactory
    ) -> Iterator[Stage]:
        folder = tmp_path_factory.mktemp("points")
        with running(folder, model=llama_3, tensor_parallel_size=3, parity=request.param, flush_tokens=4) as stage:
            yield stage

    @pytest.mark.parametrize(("first", "second"), [(0, 1), (1, 2), (2, 0)])
    def test_two_at_once(self, stage: Stage, first: int, second: int) -> None:
        scene = stage.scene()
        scene.stream(4, prompt=40, tokens=24)
        scene.when(decoding(8)).kill(first, second)
        scene.finish()
        assert {rank for record in scene.recoveries for rank in record.lost_ranks} == {first, second}
        assert sum(record.recomputed_requests for record in scene.recoveries) == 0
        assert scene.bytes_wiped > 0
        scene.assert_undisturbed()

    @pytest.mark.parametrize("during", DURING)
    def test_second_during_the_recovery_of_the_first(self, stage: Stage, during: str) -> None:
        moment, point = DURING[during]
        scene = stage.scene()
        scene.stream(4, prompt=40, tokens=24)
        scene.when(moment).arm(point)
        scene.when(decoding(8)).kill(0)
        scene.finish()
        assert sum(record.recomputed_requests for record in scene.recoveries) == 0
        scene.assert_undisturbed()
