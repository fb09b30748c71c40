"""Where the ranks go: from the machine's facts, before anything starts."""

import os
from collections.abc import Callable

import pytest

from ghostserve.cuda.facts import DeviceFact, Facts
from ghostserve.cuda.probe import CONTEXT_BYTES
from ghostserve.engine.config import EngineConfig
from ghostserve.engine.dryrun import rank_weight_bytes
from ghostserve.engine.exchange import exchange_bytes
from ghostserve.engine.modelspec import ModelSpec, inspect_checkpoint
from ghostserve.engine.placement import RING_BYTES, place
from ghostserve.errors import ConfigError, DeviceMemoryError, UnsupportedCodeError

GPU = DeviceFact(name="H100", bus_id="0000:01:00.0", free=70 << 30, total=80 << 30)


def facts(count: int = 1, **changes: object) -> Facts:
    given = {
        "devices": (GPU,) * count,
        "driver": 13000,
        "bindings": 13000,
        "nccl": (2, 30, 7),
        "peers": ((True,) * count,) * count,
    }
    return Facts(**given | changes)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def spec(llama_4: str) -> ModelSpec:
    return inspect_checkpoint(settings(llama_4))


def settings(model: str = "", **changes: object) -> EngineConfig:
    given = {"model": model, "tensor_parallel_size": 2, "kv_cache_memory": 1 << 22, "device": "cuda"}
    return EngineConfig(**given | changes)  # type: ignore[arg-type]


def test_two_ranks_on_two_gpus(spec: ModelSpec) -> None:
    found = place(settings(), spec, gather=lambda: facts(2))
    assert (found.device, found.devices, found.data_path) == ("cuda", (0, 1), "cuda-ipc")
    assert "NCCL_MULTI_RANK_GPU_ENABLE" not in found.environment
    assert found.environment["TORCH_NCCL_ASYNC_ERROR_HANDLING"] == "0"
    assert found.environment["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"


def test_two_ranks_on_one_gpu_need_a_newer_nccl(spec: ModelSpec) -> None:
    found = place(settings(), spec, gather=facts)
    assert found.devices == (0, 0)
    assert found.environment["NCCL_MULTI_RANK_GPU_ENABLE"] == "1"
    with pytest.raises(ConfigError, match=r"needs NCCL >= 2.30, and NCCL 2.27.3 is loaded"):
        place(settings(), spec, gather=lambda: facts(nccl=(2, 27, 3)))


def test_without_ipc_the_fallback_is_named(spec: ModelSpec) -> None:
    found = place(settings(), spec, gather=lambda: facts(ipc_problem="operation not permitted"))
    assert found.data_path == "cuda-staged"
    assert any("operation not permitted" in reason for reason in found.reasons)


@pytest.mark.parametrize(
    ("protect", "medium"),
    [("parity", "host memory"), ("replicate-host", "host memory"), ("replicate-ssd", "a file, by way of host memory")],
)
def test_every_strategy_is_served_and_named(spec: ModelSpec, protect: str, medium: str) -> None:
    found = place(settings(protect=protect), spec, gather=facts)
    assert found.data_path == "cuda-ipc"
    assert found.reasons[-1] == f"protect {protect}: kept in {medium}"
    assert place(settings(protect="none"), spec, gather=facts).data_path == "none"


def test_a_data_path_that_was_asked_for(spec: ModelSpec) -> None:
    assert place(settings(data_path="cuda-staged"), spec, gather=facts).data_path == "cuda-staged"
    with pytest.raises(ConfigError, match=r"data_path 'cuda-ipc' can't be had here: .*not permitted"):
        place(settings(data_path="cuda-ipc"), spec, gather=lambda: facts(ipc_problem="operation not permitted"))
    with pytest.raises(ConfigError, match="data_path 'nccl' is unknown; allowed: auto, cuda-ipc, cuda-staged"):
        settings(data_path="nccl")


def test_auto_takes_the_cpu_where_there_is_no_gpu(spec: ModelSpec) -> None:
    found = place(settings(device="auto"), spec, gather=lambda: facts(0, problem="there is no NVIDIA driver"))
    assert (found.device, found.devices, found.data_path) == ("cpu", (), "host")
    assert "there is no NVIDIA driver" in found.reasons[0]
    with pytest.raises(ConfigError, match="there is no NVIDIA driver"):
        place(settings(), spec, gather=lambda: facts(0, problem="there is no NVIDIA driver"))


def test_auto_does_not_hide_that_a_gpu_is_there(spec: ModelSpec) -> None:
    with pytest.raises(ConfigError, match=r"needs NCCL >= 2.30.*or set it to cpu"):
        place(settings(device="auto"), spec, gather=lambda: facts(nccl=(2, 27, 3)))


def test_what_the_user_has_set_stays(spec: ModelSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(os.environ, "NCCL_SOCKET_IFNAME", "eth7")
    monkeypatch.setitem(os.environ, "TORCH_NCCL_ASYNC_ERROR_HANDLING", "1")
    environment = place(settings(), spec, gather=facts).environment
    assert "NCCL_SOCKET_IFNAME" not in environment
    assert environment["TORCH_NCCL_ASYNC_ERROR_HANDLING"] == "0", "with torch's teardown no recovery works"


def test_a_gpu_that_is_too_small(spec: ModelSpec) -> None:
    small = DeviceFact(name="small", bus_id="", free=600 << 20, total=1 << 30)
    with pytest.raises(DeviceMemoryError, match="2 ranks need"):
        place(settings(), spec, gather=lambda: facts(devices=(small,)))


def test_ranks_that_share_a_gpu_need_room_for_their_sums(spec: ModelSpec) -> None:
    def room(free: int, count: int) -> Callable[[], Facts]:
        gpu = DeviceFact(name="GPU", bus_id="", free=free, total=80 << 30)
        return lambda: facts(count, devices=(gpu,) * count)

    rank = rank_weight_bytes(spec) + spec.cache_layout.total_bytes + RING_BYTES + CONTEXT_BYTES
    both = 2 * (rank + exchange_bytes(2))
    assert place(settings(), spec, gather=room(both, 1)).devices == (0, 0)
    with pytest.raises(DeviceMemoryError, match="2 ranks need"):
        place(settings(), spec, gather=room(both - 1, 1))
    assert place(settings(), spec, gather=room(rank, 2)).devices == (0, 1)


def test_a_cache_that_the_kernels_can_not_read(spec: ModelSpec) -> None:
    import msgspec

    odd = msgspec.structs.replace(spec, head_dim=3)
    with pytest.raises(UnsupportedCodeError, match="multiple of 16"):
        place(settings(), odd, gather=facts)


def test_an_unknown_device() -> None:
    with pytest.raises(ConfigError, match="device 'tpu' is unknown; allowed: auto, cpu, cuda"):
        settings(device="tpu")


def test_scrubbing_is_refused_on_cuda_and_not_on_the_cpu(spec: ModelSpec) -> None:
    with pytest.raises(ConfigError, match=r"scrub_rate 5 works on the CPU only .*: set it to 0"):
        place(settings(scrub_rate=5), spec, gather=facts)
    assert place(settings(scrub_rate=5, device="cpu"), spec, gather=facts).device == "cpu"
