"""Nothing is ever found where nothing is wrong: a crowded cache, whose slots change hands all the time, is scrubbed."""

from collections.abc import Iterator

import pytest
from scene import Stage, decoding, running

from ghostserve.engine.messages import Scrub
from ghostserve.parity.ranges import singles

SETTINGS = {"tensor_parallel_size": 3, "parity": "rs:1", "recovery": "rebuild", "scrub_rate": 256 << 20}


@pytest.fixture(scope="module")
def crowd(llama_3: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    """A cache so small that requests push each other out: all slots change hands."""
    settings = SETTINGS | {"kv_cache_memory": 3 << 17, "max_num_seqs": 6}
    with running(tmp_path_factory.mktemp("crowd"), model=llama_3, **settings) as stage:
        yield stage


def test_nothing_is_found_under_load(crowd: Stage) -> None:
    """Preemptions, a client that leaves, ranks that die."""
    scene = crowd.scene()
    streams = scene.stream(12, prompt=30, tokens=60)
    scene.when(decoding(10)).do(lambda: scene.abort(streams[3]))
    scene.when(decoding(20)).kill(0)
    scene.when(decoding(45)).kill(2)
    scene.finish()
    counters = crowd.engine.status().counters
    assert counters["preemptions"] > 0
    assert len(scene.recoveries) == 2
    assert counters["scrub_passes"] > 1
    assert counters["scrub_corrupt_slots"] == counters["scrub_recomputed_requests"] == 0
    assert crowd.engine.status().scrub_findings == []
    scene.assert_undisturbed()


@pytest.mark.parametrize("believes", [False, True])
def test_slots_that_change_hands_before_they_are_read(crowd: Stage, believes: bool) -> None:
    """A rank gets to its reading only when others own the blocks. `believes`: the twin, where nobody asks whose the
    slots are by now."""
    coordinator = crowd.engine.coordinator
    scrub, serving, memory = coordinator._scrub, coordinator.serving, coordinator._memory
    go_on, owner = scrub.go_on, serving.owner
    held: list[tuple[int, Scrub]] = []

    def late(machine: object, send: object) -> None:
        if not held:  # one that was held and never sent would be the last that is asked for in this epoch
            go_on(machine, lambda worker, message: held.append((worker, message)))

    def changed_hands(name: str, details: dict[str, object]) -> bool:
        return name == "step" and not all(memory.is_committed(slot) for slot in singles(held[0][1].ranges))

    scene = crowd.scene()
    scrub.go_on = late
    try:
        scene.stream(3, prompt=40, tokens=200)
        crowd.until(lambda: held, "nothing was to be scrubbed")
        before = crowd.engine.status().counters  # whatever was asked earlier has been answered
        scene.leave()
        if believes:
            serving.owner = lambda slots: next(iter(serving.scheduler.running), None)
        scene.when(changed_hands).do(lambda: coordinator._group.send(*held[0]))
        scene.stream(6, prompt=60, tokens=200)
        crowd.until(lambda: withdrawn(crowd, before) > 0, "nothing was read, or nothing was wrong with it")
        scene.leave()
    finally:
        scrub.go_on, serving.owner = go_on, owner
    found = crowd.engine.status().counters["scrub_corrupt_slots"] - before["scrub_corrupt_slots"]
    assert found > 0 if believes else found == 0


def withdrawn(stage: Stage, before: dict[str, float]) -> float:
    """Mismatches since then, whether they counted or not."""
    now = stage.engine.status().counters
    names = ("scrub_withdrawn_slots", "scrub_corrupt_slots")
    return sum(now[name] - before[name] for name in names)
