"""The fault scripts on CUDA, several ranks on one GPU: real NCCL, real IPC, the KV really gone with its process.

    LD_PRELOAD=/path/to/libnccl.so.2 pytest -m gpu tests/engine/test_cuda_model.py tests/engine/test_cuda_faults.py

needs NCCL >= 2.30 where there are fewer GPUs than ranks. Standbys are made again while the next scene plays.
"""

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from scene import Stage, decoding, phase, prefilling, replaying, running

pytestmark = pytest.mark.gpu

_FREE = "import torch; print(torch.cuda.mem_get_info()[0])"


def free_memory() -> int:
    """Bytes free on GPU 0, as a fresh process sees them: its own context is the same each time."""
    return int(subprocess.run([sys.executable, "-c", _FREE], check=True, capture_output=True, text=True).stdout)


def assert_given_back(before: int) -> None:
    """All but 32 MiB of the device memory that was free `before` is free again; the driver takes a moment for it."""
    deadline = time.monotonic() + 20
    while (missing := before - free_memory()) >= 32 << 20:
        users = "--query-compute-apps=pid,name,used_memory", "--format=csv,noheader"
        said = subprocess.run(["nvidia-smi", *users], check=False, capture_output=True, text=True).stdout
        assert time.monotonic() < deadline, f"{missing >> 20} MiB of device memory were left behind; processes:\n{said}"
        time.sleep(1)


class TestFourRanks:
    """bfloat16 (variable-length attention where torch has it), two parity shards."""

    @pytest.fixture(scope="class")
    def stage(self, llama_4: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
        before = free_memory()
        with running(
            tmp_path_factory.mktemp("points"),
            device="cuda",
            model=llama_4,
            tensor_parallel_size=4,
            dtype="bfloat16",
            parity="rs:2",
            standbys=4,
            step_deadline=10.0,
        ) as stage:
            yield stage
        assert_given_back(before)

    def test_nobody_dies(self, stage: Stage) -> None:
        scene = stage.scene()
        status = stage.engine.status()
        assert (status.device, status.data_path) == ("cuda", "cuda-ipc"), status.placement
        scene.stream(4, prompt=30, tokens=20)
        scene.finish(recoveries=0)
        scene.assert_undisturbed()

    @pytest.mark.parametrize("rank", [0, 3])
    def test_killed_in_the_prefill_of_a_long_prompt(self, stage: Stage, rank: int) -> None:
        scene = stage.scene()
        scene.stream(1, prompt=20, tokens=12)
        scene.stream(2, prompt=300, tokens=6)
        scene.when(prefilling(at_least=100)).kill(rank)
        scene.finish(recoveries=1)
        scene.assert_rebuilt(rank)
        scene.assert_undisturbed()

    @pytest.mark.parametrize("rank", [0, 2])
    def test_killed_while_all_decode(self, stage: Stage, rank: int) -> None:
        scene = stage.scene()
        scene.stream(6, prompt=30, tokens=20)
        scene.when(decoding(10)).kill(rank)
        scene.finish(recoveries=1)
        scene.assert_rebuilt(rank)
        scene.assert_undisturbed()
        phases = [name for name, _ in scene.recoveries[0].phases]
        assert {"detected", "released", "weights", "rejoined", "rebuilt", "replayed"} <= set(phases)

    @pytest.mark.parametrize("point", ["flush.begin[0]", "flush.encoded[1]", "flush.committed[2]", "step.end[1]"])
    def test_killed_during_a_flush_and_right_after_a_step(self, stage: Stage, point: str) -> None:
        scene = stage.scene()
        scene.stream(4, prompt=30, tokens=20)
        scene.when(decoding(5)).arm(point)
        scene.finish(recoveries=1)
        scene.assert_rebuilt(int(point[-2]))
        scene.assert_undisturbed()

    @pytest.mark.parametrize(("first", "second"), [(0, 1), (3, 1)])
    def test_two_at_once(self, stage: Stage, first: int, second: int) -> None:
        scene = stage.scene(standbys=2)
        scene.stream(4, prompt=40, tokens=16)
        scene.when(decoding(8)).kill(first, second)
        scene.finish()
        assert {rank for record in scene.recoveries for rank in record.lost_ranks} == {first, second}
        assert sum(record.recomputed_requests for record in scene.recoveries) == 0
        scene.assert_undisturbed()

    @pytest.mark.parametrize(
        "during",
        [
            (decoding(8), "release.end[1]"),
            (decoding(8), "load.begin[-1]"),
            (decoding(8), "join.begin[2]"),
            (decoding(8), "rebuild.begin[0]"),
            (phase("replaying"), "step.begin[1]"),
        ],
        ids=lambda during: during[1],
    )
    def test_second_during_the_recovery_of_the_first(self, stage: Stage, during: tuple[object, str]) -> None:
        moment, point = during
        scene = stage.scene(standbys=2)
        scene.stream(4, prompt=40, tokens=16)
        scene.when(moment).arm(point)  # type: ignore[arg-type]
        scene.when(decoding(8)).kill(0)
        scene.finish()
        assert sum(record.recomputed_requests for record in scene.recoveries) == 0
        scene.assert_undisturbed()

    def test_more_than_parity_covers(self, stage: Stage, caplog: pytest.LogCaptureFixture) -> None:
        scene = stage.scene(standbys=3)
        scene.stream(4, prompt=40, tokens=12)
        scene.when(decoding(6)).kill(0, 1, 3)
        scene.finish()
        scene.assert_recomputed(caplog, "3 data shards are lost, parity covers 2")
        scene.assert_undisturbed()

    @pytest.mark.parametrize("rank", [0, 2])
    def test_stopped_past_the_step_deadline(self, stage: Stage, rank: int) -> None:
        scene = stage.scene()
        scene.stream(4, prompt=30, tokens=16)
        scene.when(decoding(6)).stop(rank)
        scene.finish(recoveries=1)
        scene.assert_rebuilt(rank)
        assert scene.recoveries[0].lost_ranks == [rank], "those who wait for it on the device are not to blame"
        assert "hangs" in scene.recoveries[0].reason
        scene.assert_undisturbed()

    def test_busy_on_the_host_past_the_step_deadline(self, stage: Stage) -> None:
        scene = stage.scene()
        scene.stream(4, prompt=30, tokens=16)
        scene.when(decoding(6)).arm("step.begin[1]", "sleep 600")
        scene.finish(recoveries=1)
        assert scene.recoveries[0].lost_ranks == [1]
        scene.assert_undisturbed()

    def test_stopped_while_it_replays(self, stage: Stage) -> None:
        scene = stage.scene(standbys=2)
        scene.stream(4, prompt=30, tokens=16)
        scene.when(replaying).stop(2)
        scene.when(decoding(6)).kill(1)
        scene.finish()
        assert sum(record.recomputed_requests for record in scene.recoveries) == 0
        scene.assert_undisturbed()


class TestFourRanksWithCopies:
    """The same kills where every shard is copied: any number of ranks comes back."""

    @pytest.fixture(scope="class", params=["replicate-host", "replicate-ssd"])
    def stage(
        self, request: pytest.FixtureRequest, llama_4: str, tmp_path_factory: pytest.TempPathFactory
    ) -> Iterator[Stage]:
        before = free_memory()
        with running(
            tmp_path_factory.mktemp("points"),
            device="cuda",
            model=llama_4,
            tensor_parallel_size=4,
            dtype="bfloat16",
            protect=request.param,
            standbys=4,
            step_deadline=10.0,
        ) as stage:
            status = stage.engine.status()
            assert (status.protect, status.data_path) == (request.param, "cuda-ipc"), status.placement
            assert any(f"protect {request.param}" in reason for reason in status.placement)
            yield stage
        assert_given_back(before)

    def test_killed_in_the_prefill_of_a_long_prompt(self, stage: Stage) -> None:
        scene = stage.scene()
        scene.stream(1, prompt=20, tokens=12)
        scene.stream(2, prompt=300, tokens=6)
        scene.when(prefilling(at_least=100)).kill(3)
        scene.finish(recoveries=1)
        scene.assert_rebuilt(3)
        scene.assert_undisturbed()

    def test_killed_while_all_decode(self, stage: Stage) -> None:
        scene = stage.scene()
        scene.stream(6, prompt=30, tokens=20)
        scene.when(decoding(10)).kill(2)
        scene.finish(recoveries=1)
        scene.assert_rebuilt(2)
        scene.assert_undisturbed()

    @pytest.mark.parametrize("point", ["flush.begin[0]", "flush.encoded[1]", "flush.committed[2]", "step.end[1]"])
    def test_killed_during_a_flush_and_right_after_a_step(self, stage: Stage, point: str) -> None:
        scene = stage.scene()
        scene.stream(4, prompt=30, tokens=20)
        scene.when(decoding(5)).arm(point)
        scene.finish(recoveries=1)
        scene.assert_rebuilt(int(point[-2]))
        scene.assert_undisturbed()

    def test_all_at_once(self, stage: Stage) -> None:
        scene = stage.scene(standbys=4)
        scene.stream(4, prompt=40, tokens=16)
        scene.when(decoding(8)).kill(0, 1, 2, 3)
        scene.finish()
        assert sum(record.recomputed_requests for record in scene.recoveries) == 0
        assert sum(record.bytes_rebuilt for record in scene.recoveries) > 0
        scene.assert_undisturbed()

    @pytest.mark.parametrize("point", ["join.begin[2]", "rebuild.begin[0]"])
    def test_second_during_the_recovery_of_the_first(self, stage: Stage, point: str) -> None:
        scene = stage.scene(standbys=2)
        scene.stream(4, prompt=40, tokens=16)
        scene.when(decoding(8)).arm(point)
        scene.when(decoding(8)).kill(0)
        scene.finish()
        assert sum(record.recomputed_requests for record in scene.recoveries) == 0
        scene.assert_undisturbed()

    def test_stopped_past_the_step_deadline(self, stage: Stage) -> None:
        scene = stage.scene()
        scene.stream(4, prompt=30, tokens=16)
        scene.when(decoding(6)).stop(1)
        scene.finish(recoveries=1)
        scene.assert_rebuilt(1)
        scene.assert_undisturbed()


def test_nothing_kept_is_recomputed(llama_4: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with running(
        tmp_path / "points", device="cuda", model=llama_4, tensor_parallel_size=2, protect="none", standbys=1
    ) as stage:
        scene = stage.scene()
        scene.stream(4, prompt=60, tokens=16)
        scene.when(decoding(8)).kill(1)
        scene.finish(recoveries=1)
        scene.assert_recomputed(caplog, "1 data shards are lost, parity covers 0")
        scene.assert_undisturbed()


def test_without_a_standby_in_float32(llama_4: str, tmp_path: Path) -> None:
    with running(
        tmp_path / "points", device="cuda", model=llama_4, tensor_parallel_size=2, parity="xor", standbys=0
    ) as stage:
        scene = stage.scene()
        scene.stream(4, prompt=60, tokens=20)
        scene.when(decoding(8)).kill(1)
        scene.finish(recoveries=1)
        scene.assert_rebuilt(1)
        scene.assert_undisturbed()


def test_replicated_kv_without_kept_weights(llama_4_of_2: str, tmp_path: Path) -> None:
    with running(
        tmp_path / "points",
        device="cuda",
        model=llama_4_of_2,
        tensor_parallel_size=4,
        dtype="bfloat16",
        parity="rs:1",
        standbys=1,
        pin_weights=False,
    ) as stage:
        scene = stage.scene()
        scene.stream(4, prompt=40, tokens=16)
        scene.when(decoding(8)).kill(3)
        scene.finish(recoveries=1)
        scene.assert_rebuilt(3)
        assert "copied from replicas" in scene.recoveries[0].plan[0]
        scene.assert_undisturbed()


@pytest.mark.parametrize("protect", ["parity", "replicate-host"])
def test_without_a_rebuild_tokens_differ(llama_4: str, tmp_path: Path, protect: str) -> None:
    with running(
        tmp_path / "points",
        device="cuda",
        model=llama_4,
        tensor_parallel_size=2,
        protect=protect,
        standbys=1,
        skip_rebuild=True,
    ) as stage:
        scene = stage.scene()
        scene.stream(4, prompt=60, tokens=16)
        scene.when(decoding(8)).kill(1)
        scene.finish(recoveries=1)
        scene.assert_delivered()
        result = scene.compare()
        assert {d.disturbed.request_id for d in result.differences} == {s.request_id for s in scene.streams}


@pytest.mark.parametrize("protect", ["parity", "replicate-host", "replicate-ssd"])
def test_staged_through_the_host(llama_4: str, tmp_path: Path, protect: str) -> None:
    """As where CUDA IPC is refused: the same promise over the fallback."""
    with running(
        tmp_path / "points",
        device="cuda",
        data_path="cuda-staged",
        model=llama_4,
        tensor_parallel_size=2,
        protect=protect,
        parity="rs:1",
        standbys=1,
    ) as stage:
        assert stage.engine.status().data_path == "cuda-staged"
        scene = stage.scene()
        scene.stream(4, prompt=60, tokens=20)
        scene.when(decoding(8)).kill(1)
        scene.finish(recoveries=1)
        scene.assert_rebuilt(1)
        scene.assert_undisturbed()
