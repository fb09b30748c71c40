"""A rank that runs into a limit of the system while it lives: lost like any other, and the streams go on."""

import resource
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from scene import Stage, decoding, running

from ghostserve.engine.launch import nursery

FULL, OTHER = 1, 0


@pytest.fixture(scope="module")
def stage(llama_3: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    settings = {"model": llama_3, "tensor_parallel_size": 3, "parity": "rs:2", "recovery": "rebuild"}
    # A thread's memory is not kept for the next one: a group that is made anew needs some, however much lies about.
    # That is said to a process when it is started, and so to a nursery that no other test's engines have, nor will.
    with pytest.MonkeyPatch.context() as patch, closing(nursery()):
        patch.setenv("GLIBC_TUNABLES", "glibc.pthread.stack_cache_size=0")
        nursery().close()
        with running(tmp_path_factory.mktemp("points"), **settings) as stage:
            assert b"stack_cache_size=0" in Path(f"/proc/{nursery().pid}/environ").read_bytes()
            yield stage


def lower(stage: Stage, rank: int, limit: int) -> None:
    """From now on the rank's process gets nothing more of it than it has."""
    driver = stage.engine.coordinator._driver
    pid = driver._group.pid(driver.machine.members[rank])
    _, hard = resource.prlimit(pid, limit)
    resource.prlimit(pid, limit, (0, hard))


@pytest.mark.parametrize("what", ["RLIMIT_NOFILE", "RLIMIT_AS"])
def test_a_survivor_that_can_not_join_again(stage: Stage, what: str) -> None:
    """It needs files and memory to meet the newcomer, and is refused them."""
    scene = stage.scene(standbys=2)
    scene.stream(4, prompt=40, tokens=40)
    scene.when(decoding(8)).do(lambda: lower(stage, FULL, getattr(resource, what)))
    scene.when(decoding(9)).kill(OTHER)
    scene.finish()
    lost = {rank for record in scene.recoveries for rank in record.lost_ranks}
    assert lost == {OTHER, FULL}, [record.reason for record in scene.recoveries]
    assert sum(record.recomputed_requests for record in scene.recoveries) == 0
    scene.assert_undisturbed()


def test_with_room_for_both_nobody_else_is_lost(stage: Stage) -> None:
    """The twin: the same death without a limit."""
    scene = stage.scene()
    scene.stream(4, prompt=40, tokens=40)
    scene.when(decoding(9)).kill(OTHER)
    scene.finish(recoveries=1)
    scene.assert_rebuilt(OTHER)
    scene.assert_undisturbed()
