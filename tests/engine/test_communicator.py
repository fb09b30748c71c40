"""A join that fails: a peer's fault, or this rank's own."""

import pytest

from ghostserve.engine.communicator import Communicator, CommunicatorError
from ghostserve.workers.rendezvous import host_rendezvous


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
