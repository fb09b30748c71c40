"""Strangers who find the rendezvous' port: they learn nothing there, and nothing that they do is believed."""

import random
import threading
from datetime import timedelta

import pytest
import torch
from torch.distributed import PrefixStore, ProcessGroupGloo, Store

from ghostserve.workers.rendezvous import Rendezvous, connect, host_rendezvous
from ghostserve.workers.sealed_store import SealBrokenError, SealedStore

SHORT = timedelta(seconds=1)
LONG = timedelta(seconds=15)


@pytest.fixture(autouse=True)
def _loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")


class Member(threading.Thread):
    """Joins the group of epoch 1 as `rank` of two, and adds its value to the others'."""

    def __init__(self, store: Store, rank: int, value: float, timeout: timedelta = LONG) -> None:
        super().__init__()
        self._store, self._rank, self._timeout = store, rank, timeout
        self._tensor = torch.full((1,), value)
        self.sum: float | None = None
        self.error: Exception | None = None
        self.start()

    def run(self) -> None:
        try:
            group = ProcessGroupGloo(PrefixStore("epoch-1", self._store), self._rank, 2, self._timeout)
            group.allreduce([self._tensor]).wait()
            self.sum = self._tensor.item()
        except Exception as error:  # noqa: BLE001 - what it is, the test says
            self.error = error


def sealed(rendezvous: Rendezvous, secret: str | None = None) -> SealedStore:
    return SealedStore(connect(rendezvous.port), secret or rendezvous.secret)


def test_a_stranger_takes_no_part() -> None:
    """It knows port, epoch and protocol, and comes before the rank whose place it wants."""
    rendezvous = host_rendezvous()
    first = Member(sealed(rendezvous), 0, 1.0)
    stranger = Member(sealed(rendezvous, secret="guessed"), 1, 100.0, SHORT)
    stranger.join(20)
    assert stranger.sum is None
    assert stranger.error is not None, "it found nobody"
    second = Member(sealed(rendezvous), 1, 2.0)
    first.join(20)
    second.join(20)
    assert first.error is second.error is None
    assert (first.sum, second.sum) == (3.0, 3.0)


def test_one_who_knows_the_secret_would() -> None:
    """The twin: what keeps the stranger out is the secret."""
    rendezvous = host_rendezvous()
    first = Member(sealed(rendezvous), 0, 1.0)
    stranger = Member(sealed(rendezvous), 1, 100.0)
    first.join(20)
    stranger.join(20)
    assert stranger.sum == first.sum == 101.0


def filled(rendezvous: Rendezvous) -> SealedStore:
    store = sealed(rendezvous)
    store.set("address-of-0", b"where rank 0 listens")
    store.set("address-of-1", b"where rank 1 listens")
    return store


def test_members_read_what_members_write() -> None:
    rendezvous = host_rendezvous()
    filled(rendezvous)
    reader = sealed(rendezvous)
    reader.wait(["address-of-0", "address-of-1"], SHORT)
    assert [reader.get(f"address-of-{rank}") for rank in (0, 1)] == [b"where rank 0 listens", b"where rank 1 listens"]
    assert reader.check(["address-of-0"])
    assert not reader.check(["address-of-2"])
    generator = random.Random(3)
    for size in (0, 1, 31, 32, 33, 1000):
        value = generator.randbytes(size)
        reader.set("again", value)
        assert filled(rendezvous).get("again") == value
    with pytest.raises(RuntimeError):
        reader.wait(["address-of-2"], timedelta(seconds=0.1))


def test_a_stranger_reads_neither_names_nor_values() -> None:
    rendezvous = host_rendezvous()
    filled(rendezvous)
    stranger = connect(rendezvous.port)
    names = stranger.list_keys()
    assert len(names) == 2, "what is there can be seen, but not what it is"
    seen = " ".join(names).encode() + b"".join(stranger.get(name) for name in names)
    assert not any(word in seen for word in (b"address", b"rank", b"listens", rendezvous.secret.encode()))
    assert not stranger.check(["address-of-0", "epoch-1/address-of-0"])


@pytest.mark.parametrize("forgery", ["garbage", "empty", "short", "flipped", "swapped", "older"])
def test_what_a_stranger_writes_is_not_believed(forgery: str) -> None:
    rendezvous = host_rendezvous()
    store = filled(rendezvous)
    raw = connect(rendezvous.port)
    name, other = store._name("address-of-0"), store._name("address-of-1")
    assert {name, other} == set(raw.list_keys())
    value = raw.get(name)
    forged = {
        "garbage": random.Random(1).randbytes(len(value)),
        "empty": b"",
        "short": value[:20],
        "flipped": value[:-1] + bytes([value[-1] ^ 1]),
        "swapped": raw.get(other),
    }
    if forgery == "older":  # written by a member, but of the rendezvous before this one
        before = host_rendezvous()
        raw.set(name, connect(before.port).get(filled(before)._name("address-of-0")))
    else:
        raw.set(name, forged[forgery])
    with pytest.raises(SealBrokenError, match="no member wrote: address-of-0"):
        store.get("address-of-0")
    assert store.get("address-of-1") == b"where rank 1 listens"


class Trusting(SealedStore):
    """The twin: nobody looks at the seal."""

    def get(self, key: str) -> bytes:
        sealed = self._inner.get(self._name(key))[32:]
        return self._crypt(key, sealed[:16], sealed[16:])


def test_without_the_seal_a_forgery_is_believed() -> None:
    rendezvous = host_rendezvous()
    store = filled(rendezvous)
    raw, name = connect(rendezvous.port), store._name("address-of-0")
    value = raw.get(name)
    raw.set(name, value[:-1] + bytes([value[-1] ^ 1]))
    assert Trusting(connect(rendezvous.port), rendezvous.secret).get("address-of-0") == b"where rank 0 listenr"


def test_every_rendezvous_has_a_secret_of_its_own() -> None:
    secrets = {host_rendezvous().secret for _ in range(5)}
    assert len(secrets) == 5
    assert all(len(secret) == 64 for secret in secrets)


def test_a_rendezvous_that_is_dropped_ends_every_wait() -> None:
    rendezvous = host_rendezvous()
    member = Member(sealed(rendezvous), 0, 1.0)
    port = rendezvous.port
    del rendezvous
    member.join(20)
    assert member.error is not None
    with pytest.raises((RuntimeError, OSError)):
        connect(port)
