"""A join that fails: a peer's fault, or this rank's own."""

import multiprocessing
import os
import signal
import threading
import time
from contextlib import suppress

import pytest

from ghostserve.engine.communicator import JOIN_TIMEOUT, Communicator, CommunicatorError
from ghostserve.engine.gloo import GlooCommunicator
from ghostserve.workers.rendezvous import host_rendezvous
from ghostserve.workers.sealed_store import SealedStore


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
    RuntimeError("Resource temporarily unavailable"),
]


@pytest.mark.parametrize("error", OWN)
def test_what_the_system_refuses_is_nobody_elses_fault(error: Exception) -> None:
    meeting = host_rendezvous()
    with pytest.raises(type(error)) as caught:
        Failing(error).bind(rank=0, epoch=1, store_port=meeting.port, secret="")
    assert caught.value is error


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("Connection reset by peer"),
        RuntimeError("recv: Resource temporarily unavailable"),
        OSError(111, "Connection refused"),
    ],
)
def test_a_peer_that_does_not_come_is_a_peers_fault(error: Exception) -> None:
    meeting = host_rendezvous()
    with pytest.raises(CommunicatorError) as caught:
        Failing(error).bind(rank=0, epoch=1, store_port=meeting.port, secret="")
    assert caught.value.__cause__ is error


class StopsConnecting(GlooCommunicator):
    """Is there, leaves the address at which it can be reached, and stops."""

    def _guard(self, store, epoch, secret):
        class LastWords(SealedStore):
            def set(self, key: str, value: str | bytes) -> None:
                super().set(key, value)
                if "here" not in key:
                    os.kill(os.getpid(), signal.SIGSTOP)

        return LastWords(store, secret)


def stop_connecting(rank: int, port: int, secret: str) -> None:
    StopsConnecting(4).bind(rank=rank, epoch=1, store_port=port, secret=secret)


def test_peers_that_stop_while_they_connect_are_soon_given_up() -> None:
    """gloo waits for them, and no release ends that: so long a survivor would be missing in the next epoch.

    It waits for a peer that has to call, and not for one that has to be called, which drawn addresses decide: of three
    one calls in seven runs of eight.
    """
    meeting = host_rendezvous()
    spawn = multiprocessing.get_context("spawn")
    peers = [spawn.Process(target=stop_connecting, args=(rank, meeting.port, meeting.secret)) for rank in range(3)]
    for peer in peers:
        peer.start()
    communicator = GlooCommunicator(4)
    try:
        began = time.monotonic()
        with suppress(CommunicatorError):
            communicator.bind(rank=3, epoch=1, store_port=meeting.port, secret=meeting.secret)
        assert time.monotonic() - began < 3 * JOIN_TIMEOUT.total_seconds(), "gloo takes five times JOIN_TIMEOUT"
    finally:
        for peer in peers:
            peer.kill()
        communicator.unbind()
        for peer in peers:
            peer.join()


def test_who_waits_for_peers_is_let_go_with_the_rendezvous() -> None:
    meetings = [host_rendezvous()]
    port, secret = meetings[0].port, meetings[0].secret
    communicator = GlooCommunicator(2)
    given_up = threading.Timer(0.5, meetings.clear)
    given_up.start()
    try:
        began = time.monotonic()
        with pytest.raises(CommunicatorError):
            communicator.bind(rank=1, epoch=1, store_port=port, secret=secret)
        assert time.monotonic() - began < JOIN_TIMEOUT.total_seconds()
    finally:
        communicator.unbind()
        given_up.join()
