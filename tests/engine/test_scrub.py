"""Bytes that rot while an engine serves are found by its scrubber and put right; and nothing else is ever found."""

import logging
from collections.abc import Iterator

import numpy as np
import pytest
from scene import Scene, Stage, decoding, running

from ghostserve.checkpoint import Scrubber
from ghostserve.codes import make_backend
from ghostserve.parity.arena import HostArena
from ghostserve.parity.paging import gather, scatter
from ghostserve.parity.ranges import SlotRange, singles
from ghostserve.status import ScrubFinding
from ghostserve.status_metrics import status_metrics

RANKS, VICTIM = 3, 1
SETTINGS = {"tensor_parallel_size": RANKS, "parity": "rs:1", "recovery": "rebuild", "scrub_rate": 256 << 20}


@pytest.fixture(scope="module")
def stage(llama_3: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    with running(tmp_path_factory.mktemp("points"), model=llama_3, **SETTINGS) as stage:
        yield stage


class Damage:
    """Flips a bit of a committed slot in the middle of the oldest request's context, when it is called."""

    def __init__(self, stage: Stage, where: str) -> None:
        self._coordinator, self.where = stage.engine.coordinator, where
        self.slot = SlotRange(0, 0, 0, 0, 0)
        self.step = 0
        self.passes = 0.0

    def __call__(self) -> None:
        coordinator, memory = self._coordinator, self._coordinator._memory
        store, serving = memory.store, coordinator.serving
        assert store is not None
        live = list(singles(serving.live_slots()))
        committed = [slot for slot, there in zip(live, store.committed_slots(live), strict=True) if there]
        self.slot = committed[7]
        self.step = serving.step
        self.passes = coordinator._scrub.counts.get("scrub_passes", 0.0)
        row = int(store.store_rows([self.slot])[0])
        if self.where == "live":
            data = gather(memory.arenas[VICTIM].array, memory.layout, [self.slot])
            # A V of the first layer, in its exponent: however little the slot weighs, what is drawn from it is other.
            data[0, memory.layout.slot_bytes // 4 + 3] ^= 0x40
            scatter(memory.arenas[VICTIM].array, memory.layout, [self.slot], data)
        elif self.where == "parity":
            store._payload[row, 0, 11] ^= 0x20
        else:
            word = {"checksum": 0, "record": store.geometry.record_words - 2}[self.where]
            store._records[row, word] ^= np.uint64(1 << 33)


def strike(stage: Stage, where: str, tokens: int = 400) -> tuple[Scene, Damage, list[tuple[ScrubFinding, float]]]:
    """Requests that decode for long, a bit that flips, and what the scrubber says of it, with the passes it took."""
    scene = stage.scene()
    damage = Damage(stage, where)
    found: list[tuple[ScrubFinding, float]] = []
    scene.stream(3, prompt=40, tokens=tokens)
    scene.when(decoding(6)).do(damage)
    scene.when(lambda name, details: name == "corrupt").do(
        lambda: found.append(
            (
                stage.engine.coordinator._scrub.findings[-1],
                stage.engine.coordinator._scrub.counts["scrub_passes"] - damage.passes,
            )
        )
    )
    return scene, damage, found


def goes_on(stage: Stage, scene: Scene, request_id: str) -> None:
    """The request has been computed again, and has drawn more tokens since."""
    recomputed = stage.engine.coordinator.serving.scheduler.requests[request_id]
    stage.until(lambda: recomputed.recomputed == 1, "the request was not recomputed")
    (stream,) = (s for s in scene.streams if s.request_id == request_id)
    so_far = len(stream.outputs)
    stage.until(lambda: len(stream.outputs) > so_far + 5, "the request did not go on")


def expected(damage: Damage) -> str:
    return {"live": f"rank {VICTIM}", "parity": f"parity shard {RANKS}"}.get(damage.where, "record")


@pytest.mark.parametrize("where", ["live", "parity", "checksum", "record"])
def test_a_flipped_bit_is_found_and_put_right(stage: Stage, caplog: pytest.LogCaptureFixture, where: str) -> None:
    caplog.set_level(logging.WARNING)
    before = stage.engine.status().counters
    scene, damage, found = strike(stage, where)
    stage.until(lambda: found, "the damage was not found")
    (finding, passes), slot = found[0], damage.slot
    assert (finding.where, finding.block, finding.slot) == (expected(damage), slot.block, slot.start)
    assert passes <= 2, "one pass may have been by already, the next one must find it"
    if where == "live":
        goes_on(stage, scene, finding.request_id)
    else:
        # Put right means: what is lost now comes back from parity, with nothing recomputed.
        stage.until(lambda: is_sound(stage, slot), "the damage was not put right")
        scene.kill(0)
        stage.until(lambda: scene.recoveries, "the engine never recovered")
    scene.leave()
    status = stage.engine.status()
    assert status.counters["scrub_corrupt_slots"] == before["scrub_corrupt_slots"] + 1, "found once"
    assert status.scrub_findings[-1] == finding
    metrics = {s.name: s.value for family in status_metrics(status) for s in family.samples}
    assert metrics["ghostserve_scrub_corrupt_slots_total"] == status.counters["scrub_corrupt_slots"]
    assert metrics["ghostserve_scrubbed_slots_total"] > 0
    line = f"{expected(damage)}, block {slot.block}, slot {slot.start} of request {finding.request_id}: silent corr"
    assert sum(line in message for message in caplog.messages) == 1
    if where == "live":
        assert_right_from_then_on(scene, damage, finding, caplog)
        return
    scene.assert_rebuilt(0)
    scene.assert_undisturbed()


def is_sound(stage: Stage, slot: SlotRange) -> bool:
    """The test's own reading: the slot is committed, and every shard of it matches the record."""
    memory = stage.engine.coordinator._memory
    assert memory.store is not None
    scrubber = Scrubber(
        store=memory.store,
        backend=make_backend("cpu"),
        arenas=[HostArena(arena.array) for arena in memory.arenas],
        layout=memory.layout,
        shard_map=stage.engine.spec.shard_map,
        held=lambda slot: True,
    )
    report = scrubber.check([slot])
    return report.slots == 1 and not report.faults


def assert_right_from_then_on(
    scene: Scene, damage: Damage, finding: ScrubFinding, caplog: pytest.LogCaptureFixture
) -> None:
    """Tokens may differ only in the damaged request, and only in steps before its KV was computed anew."""
    scene.assert_delivered()
    assert finding.remedy == f"request {finding.request_id} is recomputed"
    assert f"request {finding.request_id} is recomputed from its tokens: its KV was damaged" in caplog.messages
    steps = [e.plan.step for e in scene.recording for p in e.plan.parts if p.request_id == finding.request_id]
    again = max(
        e.plan.step
        for e in scene.recording
        for p in e.plan.parts
        if p.request_id == finding.request_id and p.start == 0
    )
    assert damage.step <= again < max(steps), "it went on from KV that was computed again"
    result = scene.compare()
    wrong = {(d.disturbed.request_id, d.step) for d in result.differences}
    print(
        "DEBUG",
        damage.step,
        again,
        steps[-1],
        sorted(wrong)[:5],
        damage.slot,
        scene.engine.spec.dtype if hasattr(scene.engine.spec, "dtype") else "",
    )
    assert wrong, "the bit made no difference: this test proves nothing"
    assert all(who == finding.request_id and damage.step <= step < again for who, step in wrong), wrong


def test_without_scrubbing_nobody_notices(stage: Stage) -> None:
    """The twin: the same damage, and every client is served to its end."""
    scrubbing = stage.engine.coordinator._scrub._scrubbing
    rate, scrubbing._rate = scrubbing._rate, 0
    try:
        scene, damage, found = strike(stage, "parity", tokens=60)
        for stream in scene.streams:
            stage.until(stream.over.is_set, "a stream never ended")
    finally:
        scrubbing._rate = rate
    assert damage.step > 0
    assert not found
    stage.strikes.clear()
