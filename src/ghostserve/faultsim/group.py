"""Stands in for `workers/group.py`: simulated workers instead of processes, messages over the simulated network."""

from typing import TYPE_CHECKING

import msgspec

from ghostserve.engine import messages as msg
from ghostserve.faultsim.ranks import SimulatedWorker
from ghostserve.workers.group import Exited

if TYPE_CHECKING:
    from ghostserve.faultsim.world import World

__all__ = ["SimulatedGroup"]


class SimulatedGroup:
    """What the coordinator calls of a `WorkerGroup`; its `poll` is where virtual time goes on."""

    def __init__(self, world: "World") -> None:
        self._world = world
        self.known: dict[int, SimulatedWorker] = {}
        """Started, and their end not reported yet."""
        self._inbox: list[tuple[int, msg.FromWorker | Exited]] = []
        self._woken = False
        self._next = 0

    def spawn(self) -> int:
        worker = SimulatedWorker(self._next, self._world)
        self._next += 1
        self.known[worker.number] = worker
        return worker.number

    def pid(self, worker: int) -> int:
        return self.known[worker].number + 1

    def alive(self, worker: int) -> bool:
        return worker in self.known

    def send(self, worker: int, message: msg.ToWorker) -> bool:
        if worker not in self.known:
            return False
        process = self.known[worker]
        self._world.sending(message)
        self._world.network.carry(worker, True, message, lambda: process.receive(message))
        return True

    def wake(self) -> None:
        self._woken = True

    def poll(self, timeout: float) -> list[tuple[int, msg.FromWorker | Exited]]:
        self._world.look_around()
        self._world.clock.run(self._world.clock.now + timeout, lambda: bool(self._inbox) or self._woken)
        self._woken = False
        happened, self._inbox = self._inbox, []
        for worker, message in happened:
            if isinstance(message, Exited):
                del self.known[worker]
        return happened

    def kill(self, worker: int) -> None:
        process = self.known.pop(worker, None)
        if process is not None:
            self._world.gone(process)
            process.end()

    def reap(self) -> None:
        """Here processes end at once."""

    def close(self) -> None:
        for worker in list(self.known):
            self.kill(worker)

    # ---- from the workers' side

    def hear(self, worker: int, message: msgspec.Struct) -> None:
        """A worker says something."""
        self._world.network.carry(worker, False, message, lambda: self._arrive(worker, message))

    def dies(self, worker: int) -> None:
        """A worker's process ends by itself: what it said before still comes, then its end, which is never lost."""
        process = self.known.get(worker)
        if process is not None and process.alive:
            self._world.gone(process)
            process.end()
            self._world.network.queue(worker, False, 0.0, lambda: self._exited(worker))

    def _arrive(self, worker: int, message: msgspec.Struct) -> None:
        if worker in self.known:
            self.known[worker].ready |= isinstance(message, msg.Hello)
            self._inbox.append((worker, message))  # type: ignore[arg-type]

    def _exited(self, worker: int) -> None:
        if worker in self.known:  # not if the coordinator has killed it meanwhile
            self._inbox.append((worker, Exited(-9)))
