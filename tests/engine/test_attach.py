"""The exchange of cache handles: a rank has joined for the machine only when it has mapped everybody's cache."""

import types
from typing import Any

import msgspec
import pytest

from ghostserve.engine import messages as msg
from ghostserve.engine.driver import RecoveryDriver
from ghostserve.recovery.machine import MachineSettings, Phase, RecoveryMachine


class Group:
    """Writes down what would be sent; workers are numbered as they are spawned."""

    def __init__(self) -> None:
        self.sent: list[tuple[int, msgspec.Struct]] = []
        self.spawned = 0

    def spawn(self) -> int:
        self.spawned += 1
        return self.spawned - 1

    def pid(self, worker: int) -> int:
        return 1000 + worker

    def send(self, worker: int, message: msgspec.Struct) -> bool:
        self.sent.append((worker, message))
        return True

    def reap(self) -> None:
        return

    def kill(self, worker: int) -> None:
        return

    def of(self, kind: type) -> list[tuple[int, Any]]:
        return [(worker, message) for worker, message in self.sent if isinstance(message, kind)]


@pytest.fixture
def group() -> Group:
    return Group()


@pytest.fixture
def driver(group: Group) -> RecoveryDriver:
    """Three ranks that have loaded and were asked to join."""
    machine = RecoveryMachine(MachineSettings(world_size=3, standbys=0))
    memory = types.SimpleNamespace(store=None, wipe=lambda rank, live: 0)
    driver = RecoveryDriver(machine, group, memory, types.SimpleNamespace(live_slots=list), lambda name, details: None)  # type: ignore[arg-type]
    driver.start()
    for worker in range(3):
        driver.hear(worker, msg.Hello(0))
    for worker, message in group.of(msg.Load):
        driver.hear(worker, msg.Loaded(message.rank, 0))
    assert machine.phase is Phase.REJOINING
    return driver


def test_handles_are_handed_out_in_rank_order_when_all_have_come(driver: RecoveryDriver, group: Group) -> None:
    members = driver.machine.members
    for rank in (2, 0):
        driver.hear(members[rank], msg.Joined(1, f"cache {rank}".encode()))
    assert group.of(msg.Attach) == []
    driver.hear(members[1], msg.Joined(1, b"cache 1"))
    wanted = msg.Attach(1, (b"cache 0", b"cache 1", b"cache 2"))
    assert sorted(group.of(msg.Attach), key=lambda sent: sent[0]) == [(worker, wanted) for worker in range(3)]
    for worker in (0, 1):
        driver.hear(worker, msg.Attached(1))
        assert driver.machine.phase is Phase.REJOINING, "not everybody has mapped yet"
    driver.tell = lambda event: setattr(driver, "last", event)  # type: ignore[method-assign]
    driver.hear(2, msg.Attached(1))
    assert driver.last.worker == 2  # type: ignore[attr-defined]


def test_a_death_in_between_starts_the_exchange_again(driver: RecoveryDriver, group: Group) -> None:
    for worker in (0, 1):
        driver.hear(worker, msg.Joined(1, b"of the first epoch"))
    driver.hear(2, msg.WorkerFailed(1, False, "died"))
    assert driver.machine.epoch == 2
    newcomer = group.spawned - 1
    driver.hear(newcomer, msg.Hello(0))
    rank = next(message.rank for worker, message in group.of(msg.Load) if worker == newcomer)
    driver.hear(newcomer, msg.Loaded(rank, 0))
    for worker in (0, 1):
        driver.hear(worker, msg.Released(2))
    assert driver.machine.phase is Phase.REJOINING
    driver.hear(newcomer, msg.Joined(2, b"new"))
    driver.hear(0, msg.Joined(1, b"late, of the first epoch"))
    driver.hear(0, msg.Joined(2, b"again"))
    assert group.of(msg.Attach) == [], "worker 1 has not joined this epoch: its older handle must not count"
    driver.hear(1, msg.Joined(2, b"again"))
    handles = {message.handles for _, message in group.of(msg.Attach)}
    assert len(handles) == 1
    assert set(handles.pop()) == {b"new", b"again"}


def test_without_handles_a_join_is_a_join(driver: RecoveryDriver, group: Group) -> None:
    seen = []
    driver.tell = seen.append  # type: ignore[method-assign,assignment]
    driver.hear(0, msg.Joined(1))
    assert len(seen) == 1
    assert group.of(msg.Attach) == []
