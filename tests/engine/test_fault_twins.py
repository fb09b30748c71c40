"""The proof that the checks can fail: a newcomer that keeps its poisoned KV is found out, and the KV really goes."""

from pathlib import Path

import numpy as np
from scene import decoding, running

from ghostserve.parity.paging import gather
from ghostserve.parity.ranges import SlotRange


def test_without_a_rebuild_tokens_differ(llama_4: str, tmp_path: Path) -> None:
    with running(tmp_path / "points", model=llama_4, tensor_parallel_size=2, standbys=1, skip_rebuild=True) as stage:
        scene = stage.scene()
        scene.stream(4, prompt=60, tokens=24)
        scene.when(decoding(8)).kill(1)
        scene.finish(recoveries=1)
        scene.assert_delivered()
        result = scene.compare()
        assert result.compared == 4 * 24
        assert {d.disturbed.request_id for d in result.differences} == {s.request_id for s in scene.streams}
        # Until the death all was right.
        assert len(result.differences) < result.compared


def test_the_dead_ranks_kv_is_gone_before_recovery_reads_anything(llama_4: str, tmp_path: Path) -> None:
    with running(tmp_path / "points", model=llama_4, tensor_parallel_size=2, standbys=1) as stage:
        memory = stage.engine.coordinator._memory
        seen: dict[str, np.ndarray] = {}
        slots: list[SlotRange] = []

        def look(name: str) -> None:
            if not slots:
                slots.extend(stage.engine.coordinator.serving.live_slots())
            seen[name] = gather(memory.arenas[1].array, memory.layout, slots)

        def prompts_are_committed(name: str, details: dict[str, object]) -> bool:
            """All have been run when somebody draws token 4; a flush may come many steps later."""
            if decoding(4)(name, details):
                run.append(details["plan"].step)
            return bool(run) and stage.engine.coordinator.serving.ledger.watermark >= run[0]

        run: list[int] = []
        scene = stage.scene()
        scene.stream(4, prompt=60, tokens=60)
        scene.when(lambda name, details: name == "lost").do(lambda: look("before"))
        scene.when(lambda name, details: name == "wiped").do(lambda: look("after"))
        scene.when(lambda name, details: name == "phase" and details["phase"] == "replaying").do(
            lambda: look("rebuilt")
        )
        scene.when(prompts_are_committed).kill(1)
        scene.finish(recoveries=1)
        assert len(seen["before"]) > 4 * 60
        assert (seen["after"] == 0xFF).all()
        assert not (seen["before"] == 0xFF).all(axis=1).any()
        back = (seen["rebuilt"] == seen["before"]).all(axis=1)
        assert back.sum() >= 4 * 60  # all but what the replay writes
        assert (seen["rebuilt"][~back] == 0xFF).all()
        scene.assert_rebuilt(1)
        scene.assert_undisturbed()
