import contextlib
import socket
import struct
import threading

import pytest

from ghostserve.engine.messages import Draw, FromWorker, Hello, Load, RunStep, SequencePart, StepPlan, ToWorker
from ghostserve.errors import GhostServeError
from ghostserve.workers import channel as channels
from ghostserve.workers.channel import Channel, ChannelClosedError


@pytest.fixture
def raw():
    ours, theirs = socket.socketpair()
    yield ours, Channel(theirs, ToWorker)
    ours.close()
    theirs.close()


@pytest.fixture
def pair():
    a, b = socket.socketpair()
    yield Channel(a, FromWorker), Channel(b, ToWorker)
    a.close()
    b.close()


def framed(channel, message):
    payload = channel._encoder.encode(message)
    return struct.pack("<I", len(payload)) + payload


def test_messages_arrive_as_they_were_sent(pair):
    plan = StepPlan(3, (SequencePart("a", (1, 2), 0, (7,), Draw(0.5, 0.9, 3, 2**63 - 1, 0, None)),))
    pair[0].send(RunStep(4, plan))
    pair[1].send(Hello(12))
    assert pair[1].receive() == RunStep(4, plan)
    assert pair[0].receive() == Hello(12)


def test_a_message_may_come_byte_by_byte(raw):
    sock, channel = raw
    data = framed(channel, Load(1)) + framed(channel, Load(2))
    got = []
    for byte in data:
        sock.sendall(bytes([byte]))
        got.append(channel.receive_ready())
    assert [m for messages in got for m in messages] == [Load(1), Load(2)]
    assert got[-1] == [Load(2)]


def test_several_messages_come_at_once_and_nothing_is_no_message(raw):
    sock, channel = raw
    assert channel.receive_ready() == []
    sock.sendall(framed(channel, Load(1)) * 3 + framed(channel, Load(2))[:-1])
    assert channel.receive_ready() == [Load(1)] * 3


def test_last_words_are_heard_before_the_end(raw):
    sock, channel = raw
    sock.sendall(framed(channel, Load(1)))
    sock.close()
    assert channel.receive_ready() == [Load(1)]
    with pytest.raises(ChannelClosedError, match="closed"):
        channel.receive_ready()
    with pytest.raises(ChannelClosedError, match="closed"):
        channel.receive()


def test_a_peer_that_is_gone_takes_no_message(pair):
    pair[1].close()
    with pytest.raises(ChannelClosedError, match="does not take"):
        pair[0].send(Load(1))


def test_an_oversized_message_is_refused_on_both_sides(pair, raw, monkeypatch):
    sock, channel = raw
    sock.sendall(struct.pack("<I", channels.MAX_MESSAGE + 1))
    with pytest.raises(ChannelClosedError, match="exceeds the limit"):
        channel.receive_ready()
    monkeypatch.setattr(channels, "MAX_MESSAGE", 100)
    with pytest.raises(GhostServeError, match="exceeds the limit of 100"):
        pair[0].send(RunStep(1, StepPlan(1, (SequencePart("x" * 200, (), 0, (), None),))))
    pair[0].send(Load(1))
    assert pair[1].receive() == Load(1), "the refused one left nothing behind"


@pytest.mark.parametrize("payload", [b"\xc1", b"\x01", b"\x81\xa4type\xa3Who"])
def test_what_is_no_message_breaks_the_channel(raw, payload):
    sock, channel = raw
    sock.sendall(struct.pack("<I", len(payload)) + payload)
    with pytest.raises(ChannelClosedError, match="can't be read"):
        channel.receive_ready()


def test_a_peer_that_does_not_read_is_waited_for_once_and_never_gets_half_a_message(monkeypatch):
    monkeypatch.setattr(channels, "_SEND_TIMEOUT", 1.0)
    a, b = socket.socketpair()
    with a, b:
        sender, receiver = Channel(a, FromWorker), Channel(b, ToWorker)
        big = RunStep(1, StepPlan(1, (SequencePart("x" * (3 << 20), (), 0, (), None),)))

        def send_until_full():
            while True:
                sender.send(big)

        with pytest.raises(ChannelClosedError, match="does not take"):
            send_until_full()
        with pytest.raises(ChannelClosedError, match="an earlier message"):
            sender.send(Load(1))
        sender.close()
        with contextlib.suppress(ChannelClosedError):
            while True:
                assert receiver.receive() == big


def test_threads_do_not_mix_their_messages(pair):
    sender, receiver = pair

    def send(rank):
        for _ in range(300):
            sender.send(Load(rank))

    threads = [threading.Thread(target=send, args=(rank,)) for rank in range(4)]
    for thread in threads:
        thread.start()
    got = [receiver.receive().rank for _ in range(1200)]
    for thread in threads:
        thread.join()
    assert sorted(got) == sorted(list(range(4)) * 300)
