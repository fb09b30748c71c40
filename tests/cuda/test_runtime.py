"""Each rule holds for the fake and, under the `gpu` marker, for CUDA: `runtime` is one or the other."""

import contextlib
import ctypes
import signal
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import torch
from fake_runtime import FRESH, FakeNode, FakeRuntime

from ghostserve.cuda import ipc
from ghostserve.cuda.host import RegisteredRegion
from ghostserve.errors import CudaError, DeviceMemoryError, DeviceUnavailableError, PeerAccessError
from ghostserve.parity.memory import SharedRegion

PAGE = 4096


def cuda_runtime():
    from ghostserve.cuda.runtime import CudaRuntime

    return CudaRuntime(0)


@pytest.fixture(params=["fake", pytest.param("cuda", marks=pytest.mark.gpu)])
def runtime(request):
    made = FakeRuntime() if request.param == "fake" else cuda_runtime()
    yield made
    if request.param == "fake":
        assert made.leaks() == {"malloc": 0, "registered": 0, "mapped": 0}
    else:
        assert made.mapped == 0


@contextlib.contextmanager
def memory(runtime, nbytes):
    address = runtime.malloc(nbytes)
    try:
        yield address
    finally:
        runtime.free(address)


@contextlib.contextmanager
def pinned(runtime, nbytes):
    with SharedRegion.create("test", nbytes) as region, RegisteredRegion(runtime, region) as registered:
        yield region.array, registered


def noise(nbytes, seed=1):
    return np.random.default_rng(seed).integers(0, 256, nbytes, dtype=np.uint8)


def test_bytes_go_to_the_device_and_back_through_registered_shared_memory(runtime):
    with memory(runtime, 10000) as device, pinned(runtime, 20000) as (array, host):
        array[:10000], array[10000:] = noise(10000), 7
        stream = runtime.stream(low_priority=True)
        runtime.copy(device, host.address, 10000, stream)
        runtime.copy(host.address + 10000, device, 9999, stream)
        stream.synchronize()
        np.testing.assert_array_equal(array[10000:19999], noise(10000)[:9999])
        assert array[19999] == 7


@pytest.mark.parametrize(
    ("target_stride", "source_stride", "width", "rows"), [(100, 64, 33, 9), (64, 64, 64, 5), (1, 2, 40, 1)]
)
def test_rows_are_copied_and_nothing_between_them(runtime, target_stride, source_stride, width, rows):
    with memory(runtime, 4096) as device, pinned(runtime, 8192) as (array, host):
        array[:4096], array[4096:] = noise(4096), 0
        stream = runtime.stream()
        runtime.fill(device, 0xEE, 4096, stream)
        runtime.copy_rows(device + 3, target_stride, host.address + 5, source_stride, width, rows, stream)
        runtime.copy(host.address + 4096, device, 4096, stream)
        stream.synchronize()
        expected = np.full(4096, 0xEE, dtype=np.uint8)
        for r in range(rows):
            first = 5 + r * source_stride
            expected[3 + r * target_stride :][:width] = array[first : first + width]
        np.testing.assert_array_equal(array[4096:], expected)


def test_rows_wider_than_their_stride_are_refused(runtime):
    with memory(runtime, 4096) as device, pytest.raises(ValueError, match="rows of 65 bytes"):
        runtime.copy_rows(device, 64, device + 2048, 128, 65, 2, runtime.stream())


def test_a_stream_waits_for_an_event_of_another(runtime):
    with memory(runtime, 1 << 20) as device, pinned(runtime, 1 << 20) as (array, host):
        first, second, event = runtime.stream(), runtime.stream(low_priority=True), runtime.event()
        runtime.fill(device, 1, 1 << 20, first)
        runtime.fill(device, 2, 1 << 20, first)
        event.record(first)
        second.wait_event(event)
        runtime.copy(host.address, device, 1 << 20, second)
        second.synchronize()
        event.synchronize()
        assert event.query()
        assert (array == 2).all()


def test_use_makes_a_stream_the_current_one_and_puts_it_back(runtime):
    before, stream = runtime.current_stream(), runtime.stream()
    with runtime.use(stream):
        assert runtime.current_stream() == stream
    assert runtime.current_stream() == before
    with pytest.raises(TypeError, match="no stream"):
        runtime.copy(0, 0, 1, object())


def test_memory_that_is_not_there_is_refused_with_numbers(runtime):
    with memory(runtime, 1 << 20):
        free, total = runtime.memory()
        assert 0 < free < total
        with pytest.raises(DeviceMemoryError) as refused:
            runtime.malloc(2 * total)
        assert refused.value.needed == 2 * total
        assert 0 < refused.value.available < total
    # The failure left nothing behind that the next call trips over.
    with memory(runtime, 4096) as device:
        runtime.fill(device, 0, 4096, runtime.current_stream())
        runtime.current_stream().synchronize()
    with pytest.raises(ValueError, match="at least 1"):
        runtime.malloc(0)


def test_host_memory_is_pinned_once_and_unpinned_once(runtime):
    with SharedRegion.create("test", 4 * PAGE) as region:
        with RegisteredRegion(runtime, region), pytest.raises(CudaError, match="pinned already"):
            RegisteredRegion(runtime, region, offset=PAGE, nbytes=PAGE)
        with RegisteredRegion(runtime, region, offset=PAGE, nbytes=PAGE) as registered:
            assert registered.address == region.array.ctypes.data + PAGE
        registered.close()
        with pytest.raises(CudaError):
            runtime.unregister(registered.address)


def test_a_region_closed_early_stays_mapped_while_it_is_pinned(runtime):
    region = SharedRegion.create("test", PAGE)
    region.array[:] = 9
    registered = RegisteredRegion(runtime, region)
    region.close()
    assert ctypes.string_at(registered.address, 1) == b"\x09"
    registered.close()


@pytest.mark.parametrize(("offset", "nbytes"), [(1, PAGE), (0, 2 * PAGE + 1), (2 * PAGE, None), (PAGE, 0)])
def test_only_whole_pages_of_the_region_are_pinned(runtime, offset, nbytes):
    with SharedRegion.create("test", 2 * PAGE) as region, pytest.raises(ValueError, match=r"region of|multiples of"):
        RegisteredRegion(runtime, region, offset=offset, nbytes=nbytes)


def test_a_driver_that_refuses_one_large_range_gets_pieces():
    runtime = FakeRuntime(register_limit=2 * PAGE)
    with SharedRegion.create("test", 5 * PAGE) as region:
        with RegisteredRegion(runtime, region, piece_bytes=2 * PAGE) as registered:
            a = registered.address
            assert registered.pieces == ((a, 2 * PAGE), (a + 2 * PAGE, 2 * PAGE), (a + 4 * PAGE, PAGE))
            assert list(registered.split(a + PAGE, 2 * PAGE)) == [(a + PAGE, PAGE), (a + 2 * PAGE, PAGE)]
            with pytest.raises(ValueError, match="not inside"):
                list(registered.split(a + PAGE, 5 * PAGE))
        # Pieces that are too large as well: an error, and nothing stays pinned.
        with pytest.raises(CudaError, match="can't be pinned"):
            RegisteredRegion(runtime, region, piece_bytes=3 * PAGE)
        runtime.register(region.array.ctypes.data + 3 * PAGE, PAGE)
        with pytest.raises(CudaError, match="pinned already"):
            RegisteredRegion(runtime, region, piece_bytes=PAGE)
        runtime.unregister(region.array.ctypes.data + 3 * PAGE)
    assert runtime.leaks()["registered"] == 0


# Handles.


def test_a_handle_of_ones_own_memory_gives_the_own_address(runtime):
    with memory(runtime, 4096) as device:
        handle = runtime.export(device + 100)
        assert ipc.handle_room(handle) >= 3996
        assert runtime.open(handle) == device + 100
        assert runtime.open(runtime.export(device)) == device
        runtime.close(handle)
        runtime.close(handle)
        with pytest.raises(CudaError, match="not open"):
            runtime.close(handle)


def test_what_is_no_handle_or_no_device_memory_is_refused(runtime):
    with pytest.raises(CudaError, match="no handle"):
        runtime.open(b"nonsense")
    host = np.zeros(100, dtype=np.uint8)
    with pytest.raises(CudaError, match="allocation"):
        runtime.export(host.ctypes.data)


def test_a_mapping_is_counted_per_allocation_and_unmapped_by_the_last_close():
    node = FakeNode()
    owner, peer = FakeRuntime(node), FakeRuntime(node)
    with memory(owner, 4096) as device:
        first, second = owner.export(device), owner.export(device + 64)
        a, b = peer.open(first), peer.open(second)
        assert b == a + 64
        assert peer.leaks()["mapped"] == 1
        peer.close(first)
        peer.fill(b, 1, 8, peer.stream())
        with pytest.raises(CudaError, match="while 1 processes have it open"):
            owner.free(device)
        peer.close(second)
        assert peer.leaks()["mapped"] == 0
        with pytest.raises(CudaError, match="no device memory"):
            peer.fill(b, 1, 8, peer.stream())
        with pytest.raises(CudaError, match="not open"):
            peer.close(second)
    with pytest.raises(PeerAccessError):
        peer.open(first)


# The fake is strict, or it proves nothing.


def test_the_fake_refuses_what_the_device_can_not_touch():
    runtime = FakeRuntime()
    host = np.zeros(64, dtype=np.uint8)
    with memory(runtime, 64) as device:
        stream = runtime.stream()
        for target, source in [(device, host.ctypes.data), (host.ctypes.data, device)]:
            with pytest.raises(CudaError, match="touched 64 bytes"):
                runtime.copy(target, source, 64, stream)
        with pytest.raises(CudaError, match="touched 65 bytes"):
            runtime.fill(device, 0, 65, stream)
        with pytest.raises(TypeError, match="no stream of this runtime"):
            runtime.fill(device, 0, 1, FakeRuntime().stream())
        assert ctypes.string_at(device, 64) == bytes([FRESH]) * 64
        assert runtime.leaks()["malloc"] == 1
        runtime.fill(device, 3, 2, stream)
        assert runtime.log[-1] == ("fill", stream.name, device, 3, 2)
    with pytest.raises(CudaError, match="no allocation"):
        runtime.free(device)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a device here")
def test_without_a_gpu_the_real_runtime_says_what_is_missing():
    with pytest.raises(DeviceUnavailableError, match=r"CUDA device 0 does not exist.*sees 0 devices"):
        cuda_runtime()


# Two processes, for real.

EXPORTER = """
    import sys, numpy as np, torch
    from ghostserve.cuda.runtime import CudaRuntime
    runtime = CudaRuntime(0)
    kind = sys.argv[1]
    if kind == "malloc":
        filler = [runtime.malloc(512) for _ in range(3)]
        address = runtime.malloc(3000)
        nbytes = 3000
        stream = runtime.stream()
        runtime.fill(address, 0x3C, nbytes, stream)
        stream.synchronize()
    else:
        before = torch.zeros(700, dtype=torch.uint8, device="cuda")
        tensor = torch.full((3000,), 0x3C, dtype=torch.uint8, device="cuda")
        torch.cuda.synchronize()
        address = tensor.data_ptr()
    print(runtime.export(address).hex(), flush=True)
    sys.stdin.readline()
"""


@pytest.mark.gpu
@pytest.mark.parametrize("kind", ["malloc", "torch"])
@pytest.mark.parametrize("killed", [False, True])
def test_another_process_memory_is_readable_also_when_that_process_is_killed(kind, killed):
    runtime = cuda_runtime()
    command = [sys.executable, "-c", textwrap.dedent(EXPORTER), kind]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as exporter:
        try:
            line = exporter.stdout.readline().strip()
            assert line, "the exporter printed no handle: its error is above"
            handle = bytes.fromhex(line)
            address = runtime.open(handle)
            assert runtime.open(handle) == address
            assert runtime.mapped == 1
            if killed:
                exporter.send_signal(signal.SIGKILL)
                exporter.wait()
            with pinned(runtime, 3000) as (array, host):
                stream = runtime.stream()
                runtime.copy(host.address, address, 3000, stream)
                stream.synchronize()
                assert (array == 0x3C).all(), f"read {bytes(array[:16]).hex()}"
                # Both openings must be closed before it is gone, and it is usable until then.
                runtime.close(handle)
                assert runtime.mapped == 1
                runtime.copy(host.address, address, 3000, stream)
                stream.synchronize()
                assert (array == 0x3C).all()
            runtime.close(handle)
            assert runtime.mapped == 0
        finally:
            exporter.kill()


@pytest.mark.gpu
def test_facts_of_this_machine_allow_one_rank():
    from ghostserve.cuda.probe import choose_devices, gather_facts_apart

    facts = gather_facts_apart()
    assert facts.problem is None, facts
    assert facts.ipc_problem is None, facts
    assert choose_devices(facts, 1).devices == (0,)
