"""The same promise with other settings: types, codes, encoders, flush policies, group sizes, scarce memory."""

from pathlib import Path

from scene import decoding, prefilling, running


def test_replicated_kv_is_copied(llama_4_of_2: str, tmp_path: Path) -> None:
    with running(tmp_path / "points", model=llama_4_of_2, tensor_parallel_size=4, parity="rs:1") as stage:
        scene = stage.scene()
        scene.stream(4, prompt=40, tokens=20)
        scene.when(decoding(8)).kill(3)
        scene.finish(recoveries=1)
        scene.assert_rebuilt(3)
        assert "copied from replicas" in scene.recoveries[0].plan[0]
        scene.assert_undisturbed()

        scene = stage.scene(standbys=2)
        scene.stream(4, prompt=40, tokens=20)
        scene.when(decoding(8)).kill(0, 1)  # both holders of one shard
        scene.finish()
        assert any("decoded from 1 survivors" in line for record in scene.recoveries for line in record.plan)
        scene.assert_undisturbed()


def test_bfloat16_with_rare_striped_flushes(llama_3: str, tmp_path: Path) -> None:
    with running(
        tmp_path / "points",
        model=llama_3,
        tensor_parallel_size=3,
        dtype="bfloat16",
        parity="rdp",
        encoder="striped",
        flush_tokens=4,
        standbys=2,
    ) as stage:
        scene = stage.scene()
        scene.stream(6, prompt=130, tokens=24)
        scene.when(prefilling(at_least=60)).kill(1)
        scene.when(decoding(10)).kill(0, 2)
        scene.finish()
        assert sum(record.recomputed_requests for record in scene.recoveries) == 0
        assert sum(record.replayed_steps for record in scene.recoveries) > 1
        scene.assert_undisturbed()


def test_memory_so_scarce_that_requests_give_way(llama_4: str, tmp_path: Path) -> None:
    with running(
        tmp_path / "points",
        model=llama_4,
        tensor_parallel_size=2,
        parity="xor",
        flush_tokens=8,
        max_unprotected_tokens=5,
        kv_cache_memory=14 * 16384,
    ) as stage:
        assert stage.engine.spec.num_blocks == 14
        scene = stage.scene()
        scene.stream(6, prompt=40, tokens=40)
        scene.when(decoding(20)).kill(0)
        scene.when(decoding(30)).kill(1)
        scene.finish(recoveries=2)
        assert stage.engine.status().counters["preemptions"] > 0
        scene.assert_undisturbed()
        stage.until(lambda: stage.engine.status().kv_cache_usage == 0, "blocks were not given back")


def test_a_group_of_one_is_rebuilt_from_parity(llama_4: str, tmp_path: Path) -> None:
    with running(tmp_path / "points", model=llama_4, tensor_parallel_size=1, parity="rs:1", standbys=1) as stage:
        scene = stage.scene()
        scene.stream(4, prompt=100, tokens=20)
        scene.when(decoding(8)).kill(0)
        scene.finish(recoveries=1)
        scene.assert_rebuilt(0)
        scene.assert_undisturbed()
