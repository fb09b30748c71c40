"""A byte that flips while a rank is lost: put right where parity has a shard to spare, else the request is recomputed.

The byte flips when the recovery is about to rebuild: the rank is dead and nobody computes any more.
"""

import logging
from collections.abc import Iterator

import numpy as np
import pytest
from scene import Scene, Stage, decoding, phase, running

from ghostserve.parity.paging import gather, scatter
from ghostserve.parity.ranges import SlotRange, singles
from ghostserve.status_metrics import status_metrics

LOST, SURVIVOR = 0, 1


@pytest.fixture(scope="module", params=["rs:1", "rs:2"])
def stage(request: pytest.FixtureRequest, llama_3: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    folder = tmp_path_factory.mktemp("points")
    settings = {"model": llama_3, "tensor_parallel_size": 3, "recovery": "rebuild"}
    with running(folder, parity=request.param, **settings) as stage:
        yield stage


class Flip:
    """Damages a committed slot in the middle of the oldest request's context."""

    def __init__(self, stage: Stage, where: str) -> None:
        self._coordinator, self._where = stage.engine.coordinator, where
        self.slot = SlotRange(0, 0, 0, 0, 0)

    def __call__(self) -> None:
        memory = self._coordinator._memory
        store = memory.store
        assert store is not None
        live = list(singles(self._coordinator.serving.live_slots()))
        committed = [slot for slot, there in zip(live, store.committed_slots(live), strict=True) if there]
        self.slot = committed[7]
        row = int(store.store_rows([self.slot])[0])
        if self._where == "survivor":
            data = gather(memory.arenas[SURVIVOR].array, memory.layout, [self.slot])
            data[0, 11] ^= 0x20
            scatter(memory.arenas[SURVIVOR].array, memory.layout, [self.slot], data)
        elif self._where == "parity":
            store._payload[row, 0, 11] ^= 0x20
        else:
            word = {"checksum": LOST, "record": store.geometry.record_words - 2}[self._where]
            store._records[row, word] ^= np.uint64(1 << 33)


def play(stage: Stage, where: str) -> tuple[Scene, Flip, dict[str, float]]:
    scene = stage.scene()
    before = stage.engine.status().counters
    flip = Flip(stage, where)
    scene.stream(3, prompt=40, tokens=20)
    scene.when(phase("rebuilding")).do(flip)
    scene.when(decoding(6)).kill(LOST)
    scene.finish(recoveries=1)
    stage.until(lambda: stage.calm(1), "the engine never came to rest")
    after = stage.engine.status().counters
    names = ("corrected_slots", "damaged_slots", "failed_slots")
    metrics = {s.name: s.value for family in status_metrics(stage.engine.status()) for s in family.samples}
    assert all(metrics[f"ghostserve_{name}_total"] == after[name] for name in names)
    return scene, flip, {name: after[name] - before[name] for name in names}


@pytest.mark.parametrize("where", ["survivor", "parity"])
def test_a_flipped_byte_of_a_shard(stage: Stage, caplog: pytest.LogCaptureFixture, where: str) -> None:
    caplog.set_level(logging.WARNING)
    scene, flip, counted = play(stage, where)
    whose = f"rank {SURVIVOR}" if where == "survivor" else "parity shard 3"
    place = f"block {flip.slot.block}, slots {flip.slot.start}..{flip.slot.stop}"
    assert any(f"{whose}, {place}: the bytes do not match" in line for line in caplog.messages)
    if stage.config.parity == "rs:2":
        scene.assert_rebuilt(LOST)
        found = "corrected_slots" if where == "survivor" else "damaged_slots"
        assert counted == {"corrected_slots": 0, "damaged_slots": 0, "failed_slots": 0} | {found: 1}
    else:
        scene.assert_recomputed(caplog, "are lost or damaged")
        assert sum(record.recomputed_requests for record in scene.recoveries) == 1
        assert any(f"rank {LOST}, {place}: shards" in line for line in caplog.messages)
        assert counted == {"corrected_slots": 0, "damaged_slots": 1, "failed_slots": 1}
    scene.assert_undisturbed()


@pytest.mark.parametrize("where", ["checksum", pytest.param("record", marks=pytest.mark.slow)])
def test_a_flipped_byte_of_a_record_takes_its_slot_out(
    stage: Stage, caplog: pytest.LogCaptureFixture, where: str
) -> None:
    """Whatever the code: without a whole record nothing of the slot can be verified."""
    caplog.set_level(logging.WARNING)
    scene, _, _ = play(stage, where)
    scene.assert_recomputed(caplog, "have no parity")
    assert sum(record.recomputed_requests for record in scene.recoveries) == 1
    scene.assert_undisturbed()
