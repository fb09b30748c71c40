"""A rank that runs into a limit of the system while it lives: lost like any other, and the streams go on."""

import resource
from collections.abc import Iterator

import pytest
from scene import Stage, decoding, running

from ghostserve.engine.communicator import Communicator, CommunicatorError
from ghostserve.workers.rendezvous import host_rendezvous

FULL, OTHER = 1, 0


@pytest.fixture(scope="module")
def stage(llama_3: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    settings = {"model": llama_3, "tensor_parallel_size": 3, "parity": "rs:2", "recovery": "rebuild"}
    with running(tmp_path_factory.mktemp("points"), **settings) as stage:
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


# ---- whose fault it is


class Failing(Communicator):
    def __init__(self, error: Exception) -> None:
        super().__init__(2)
        self._error = error

    def _guard(self, store: object, epoch: int, secret: str) -> object:
        raise self._error

    def _connect(self, store: object, epoch: int) -> None:
        raise AssertionError("not reached")


OWN = [
    OSError(24, "Too many open files"),
    RuntimeError("[c10d] The client socket has failed to connect: errno: 24 - Too many open files"),
    RuntimeError("can't allocate memory: you tried to allocate 8192 bytes. Error code 12 (Cannot allocate memory)"),
]


@pytest.mark.parametrize("error", OWN)
def test_what_the_system_refuses_is_nobody_elses_fault(error: Exception) -> None:
    meeting = host_rendezvous()
    with pytest.raises(type(error)) as caught:
        Failing(error).bind(rank=0, epoch=1, store_port=meeting.port, secret="")
    assert caught.value is error


@pytest.mark.parametrize("error", [RuntimeError("Connection reset by peer"), OSError(111, "Connection refused")])
def test_a_peer_that_does_not_come_is_a_peers_fault(error: Exception) -> None:
    meeting = host_rendezvous()
    with pytest.raises(CommunicatorError) as caught:
        Failing(error).bind(rank=0, epoch=1, store_port=meeting.port, secret="")
    assert caught.value.__cause__ is error
