import os
import signal
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from ghostserve.errors import PeerAccessError
from ghostserve.parity import SharedRegion
from ghostserve.vllm.arena import handle_of, open_peer

# Makes a region, writes a byte into it, says its handle and waits to be killed.
OWNER = """
import sys
from ghostserve.parity import SharedRegion
from ghostserve.vllm.arena import handle_of
region = SharedRegion.create("owner", 8192)
region.array[17] = 99
sys.stdout.write(handle_of(region).hex() + "\\n")
sys.stdout.flush()
sys.stdin.read()
"""


@pytest.fixture
def owner():
    """Another process with a region: (process, handle)."""
    process = subprocess.Popen([sys.executable, "-c", OWNER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    yield process, bytes.fromhex(process.stdout.readline())
    process.kill()
    process.communicate()


def test_both_sides_see_what_either_writes(owner):
    _, handle = owner
    first, second = open_peer(handle), open_peer(handle)
    assert first.array[17] == 99
    first.array[4000] = 7
    assert second.array[4000] == 7
    assert first.nbytes == 8192


def test_a_mapping_outlives_the_killed_owner_and_a_new_one_is_refused(owner):
    process, handle = owner
    region = open_peer(handle)
    process.send_signal(signal.SIGKILL)
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # dead, not reaped: the pid is still taken
    with pytest.raises(PeerAccessError, match=f"process {process.pid}"):
        open_peer(handle)
    process.wait()
    with pytest.raises(PeerAccessError, match=f"process {process.pid}: the process is gone"):
        open_peer(handle)
    region.array[18] = 1
    assert region.array[17] == 99


def changed(handle, **fields):
    return msgspec.msgpack.encode(msgspec.msgpack.decode(handle) | fields)


def test_a_recycled_pid_is_refused(owner):
    process, handle = owner
    started = msgspec.msgpack.decode(handle)["started"]
    with pytest.raises(PeerAccessError, match=f"process {process.pid}: .* another one has its pid"):
        open_peer(changed(handle, started=started - 1))
    open_peer(changed(handle, started=started))


def test_a_descriptor_that_was_closed_or_is_another_file_is_refused():
    region, other = SharedRegion.create("first", 4096), SharedRegion.create("other", 4096)
    handle, fd = handle_of(region), region.fd
    os.dup2(other.fd, fd)
    with pytest.raises(PeerAccessError, match=f"process {os.getpid()}: descriptor {fd} is another file"):
        open_peer(handle)
    region.close()
    with pytest.raises(PeerAccessError, match=f"process {os.getpid()}: .*descriptor {fd}"):
        open_peer(handle)


def test_a_region_of_another_size_is_refused():
    with SharedRegion.create("test", 4096) as region, pytest.raises(PeerAccessError, match="4096 bytes long, 8192"):
        open_peer(changed(handle_of(region), nbytes=8192))


def test_what_is_no_handle_is_refused():
    with pytest.raises(ValueError, match="no handle"):
        open_peer(b"\x81\xa3pid")


def test_refusals_leave_no_descriptor_open():
    with SharedRegion.create("test", 4096) as region:
        handle = handle_of(region)
        before = sorted(os.listdir("/proc/self/fd"))
        for bad in (changed(handle, nbytes=1), changed(handle, started=1), changed(handle, fd=999)):
            with pytest.raises(PeerAccessError):
                open_peer(bad)
        open_peer(handle).close()
        assert sorted(os.listdir("/proc/self/fd")) == before


def test_a_name_with_brackets_and_spaces_does_not_confuse_the_start_time():
    name = Path("/proc/self/comm")
    before = name.read_text()
    with SharedRegion.create("test", 4096) as region:
        handle = handle_of(region)
        try:
            name.write_text("a) R 1 (b")
            assert handle_of(region) == handle
        finally:
            name.write_text(before)
