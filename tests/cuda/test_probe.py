import errno
import os

import msgspec
import pytest

from ghostserve.cuda import numa
from ghostserve.cuda.probe import CONTEXT_BYTES, DeviceFact, Facts, choose_devices
from ghostserve.errors import ConfigError, DeviceMemoryError, DeviceUnavailableError
from ghostserve.parity.memory import SharedRegion

GIB = 1 << 30


def machine(count, **changes):
    """Facts of a machine on which everything works."""
    devices = tuple(DeviceFact("H100", f"0000:{i:02x}:00.0", 78 * GIB, 80 * GIB) for i in range(count))
    facts = Facts(
        devices=devices,
        driver=13000,
        bindings=13000,
        nccl=(2, 30, 7),
        peers=tuple((True,) * count for _ in range(count)),
    )
    return msgspec.structs.replace(facts, **changes)


def device(**changes):
    return msgspec.structs.replace(machine(1).devices[0], **changes)


def test_a_gpu_for_each_rank_where_there_are_enough():
    choice = choose_devices(machine(4), 3, 40 * GIB)
    assert (choice.devices, choice.path, choice.shared, choice.environment) == ((0, 1, 2), "cuda-ipc", False, {})
    assert choice.reasons[0] == "3 ranks on 3 of 4 GPUs (H100)"


def test_too_few_gpus_are_shared_by_turns():
    choice = choose_devices(machine(2), 4)
    assert (choice.devices, choice.shared) == ((0, 1, 0, 1), True)
    assert choice.environment == {"NCCL_MULTI_RANK_GPU_ENABLE": "1"}
    assert "NCCL 2.30.7" in choice.reasons[1]


@pytest.mark.parametrize(
    ("count", "changes", "message"),
    [
        (1, {"nccl": (2, 29, 9)}, r"needs NCCL >= 2.30, and NCCL 2.29.9 is loaded: use at most 1 ranks"),
        (1, {"multi_rank": "0"}, r"NCCL_MULTI_RANK_GPU_ENABLE=0 forbids"),
        (1, {"devices": (device(exclusive=True),)}, r"'exclusive process'"),
        (1, {"nccl": None}, r"this torch has none"),
        (2, {"nccl": None}, r"this torch has none"),
        (0, {"problem": "torch is built without CUDA"}, r"no CUDA device can be used: torch is built without CUDA"),
        (0, {}, r"none is visible"),
        (2, {"driver": 12080}, r"CUDA 13.0, the driver serves up to 12.8: install cuda-bindings<13"),
    ],
)
def test_what_can_not_work_is_refused_by_name(count, changes, message):
    with pytest.raises(DeviceUnavailableError, match=message) as refused:
        choose_devices(machine(count, **changes), 2)
    assert isinstance(refused.value, ConfigError)


@pytest.mark.parametrize(
    ("count", "ranks", "changes"),
    [
        (2, 2, {"nccl": (2, 29, 9), "multi_rank": "0", "devices": (device(exclusive=True),) * 2}),  # nothing is shared
        (1, 1, {"nccl": None}),  # one rank needs no NCCL
        (2, 2, {"driver": 13000, "bindings": 13020}),  # minor versions are compatible
        (2, 2, {"driver": 13000, "bindings": 12090}),
    ],
)
def test_what_is_not_needed_is_not_asked_for(count, ranks, changes):
    assert choose_devices(machine(count, **changes), ranks).path == "cuda-ipc"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"ipc_problem": "refused by the sandbox"}, "CUDA IPC does not work here: refused by the sandbox"),
        ({"peers": ((True, True), (False, True))}, "GPU 1 has no peer access to GPU 0"),
    ],
)
def test_without_peer_access_shards_are_staged_and_the_status_says_why(changes, reason):
    choice = choose_devices(machine(2, **changes), 2)
    assert choice.path == "cuda-staged"
    assert reason in choice.reasons[-1]


def test_peer_access_is_asked_of_the_gpus_in_use_only():
    peers = ((True, True, False), (True, True, False), (False, False, True))
    assert choose_devices(machine(3, peers=peers), 2).path == "cuda-ipc"
    assert choose_devices(machine(3, peers=peers), 3).path == "cuda-staged"


def test_memory_is_counted_for_all_ranks_of_a_gpu():
    need = 39 * GIB - CONTEXT_BYTES
    assert choose_devices(machine(1), 2, need).shared
    with pytest.raises(DeviceMemoryError, match=r"2 ranks need 78\.0 GiB there") as refused:
        choose_devices(machine(1), 2, need + 1)
    assert (refused.value.needed, refused.value.available) == (78 * GIB + 2, 78 * GIB)


def test_facts_travel_as_json():
    facts = machine(2, multi_rank="1", ipc_problem="why")
    assert msgspec.json.decode(msgspec.json.encode(facts), type=Facts) == facts


# NUMA.


@pytest.fixture
def two_nodes(tmp_path):
    """A machine's /sys with two nodes, two GPUs on the second, one on the first and one nowhere."""
    (tmp_path / "sys/devices/system/node").mkdir(parents=True)
    (tmp_path / "sys/devices/system/node/online").write_text("0-1\n")
    for bus_id, node in [("0000:0a:00.0", 1), ("0000:0b:00.0", 1), ("0000:0c:00.0", 0), ("0000:0d:00.0", -1)]:
        folder = tmp_path / "sys/bus/pci/devices" / bus_id
        folder.mkdir(parents=True)
        (folder / "numa_node").write_text(f"{node}\n")
    return tmp_path


class Mbind:
    def __init__(self, code=0):
        self.code = code
        self.calls = []

    def __call__(self, address, nbytes, mode, mask):
        self.calls.append((address, nbytes, mode, mask))
        return self.code


def test_pages_come_from_the_node_of_the_gpus_or_by_turns(two_nodes):
    mbind = Mbind()
    with SharedRegion.create("test", 4096) as region:
        near = numa.place_near_gpus(region, ["0000:0A:00.0", "0000:0b:00.0"], root=two_nodes, mbind=mbind)
        both = numa.place_near_gpus(region, ["0000:0a:00.0", "0000:0c:00.0"], root=two_nodes, mbind=mbind)
        address = region.array.ctypes.data
    assert (near.nodes, both.nodes) == ((1,), (0, 1))
    assert mbind.calls == [(address, 4096, 1, 0b10), (address, 4096, 3, 0b11)]


def test_what_can_not_be_placed_is_left_with_a_reason(two_nodes):
    with SharedRegion.create("test", 4096) as region:
        mbind = Mbind()
        for bus_id in ("0000:0d:00.0", "0000:ff:00.0"):
            found = numa.place_near_gpus(region, [bus_id], root=two_nodes, mbind=mbind)
            assert found.nodes == ()
            assert "names no NUMA node" in found.reason
        assert not mbind.calls
        refused = numa.place_near_gpus(region, ["0000:0a:00.0"], root=two_nodes, mbind=Mbind(errno.EPERM))
        assert (refused.nodes, os.strerror(errno.EPERM) in refused.reason) == ((), True)
        with pytest.raises(OSError, match="mbind of 4096 bytes"):
            numa.place_near_gpus(region, ["0000:0a:00.0"], root=two_nodes, mbind=Mbind(errno.EFAULT))
        (two_nodes / "sys/devices/system/node/online").write_text("0\n")
        assert "one NUMA node" in numa.place_near_gpus(region, ["0000:0a:00.0"], root=two_nodes).reason


def test_the_real_system_call_takes_node_0_or_is_refused_by_the_sandbox(two_nodes):
    with SharedRegion.create("test", 1 << 16) as region:
        found = numa.place_near_gpus(region, ["0000:0c:00.0"], root=two_nodes)
        assert found.nodes == (0,) or "refused" in found.reason
        region.array[:] = 1
        # A node that no machine has: the kernel must have read our mask.
        (two_nodes / "sys/bus/pci/devices/0000:0c:00.0/numa_node").write_text("900\n")
        assert numa.place_near_gpus(region, ["0000:0c:00.0"], root=two_nodes).nodes == ()
