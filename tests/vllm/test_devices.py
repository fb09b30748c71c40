"""Ranks on GPUs: which one, in what environment, when there is room, and what is refused there."""

import threading
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from test_support import fake

from ghostserve.errors import ConfigError
from ghostserve.vllm.config import PluginConfig, parse_settings
from ghostserve.vllm.devices import await_memory, environment, switch_off_shortcuts
from ghostserve.vllm.gpu_support import unshareable
from ghostserve.vllm.support import unsupported

GPU: dict[str, Any] = {
    "device_config.device_type": "cuda",
    "model_config.enforce_eager": True,
    "model_config.enable_cumem_allocator": False,
}


class TestPlaces:
    def test_a_gpu_for_each_rank_unless_something_else_is_said(self) -> None:
        assert PluginConfig().devices(3) == (0, 1, 2)
        assert parse_settings({"device_of_rank": [0, 0]}).devices(2) == (0, 0)

    @pytest.mark.parametrize("given", [(0,), (0, 0, 1), (0, -1)])
    def test_what_does_not_fit(self, given: tuple[int, ...]) -> None:
        with pytest.raises(ConfigError, match="for each of 2 ranks"):
            PluginConfig(device_of_rank=given).devices(2)

    def test_no_list(self) -> None:
        with pytest.raises(ConfigError, match="device_of_rank must be a list of whole numbers, not 'all'"):
            parse_settings({"device_of_rank": "all"})


class TestEnvironment:
    def test_only_nccl_reduces_and_nobody_but_the_executor_watches(self) -> None:
        found = environment(PluginConfig(), 2, {})
        assert found["VLLM_ALLREDUCE_USE_SYMM_MEM"] == found["VLLM_ALLREDUCE_USE_FLASHINFER"] == "0"
        assert found["TORCH_NCCL_ASYNC_ERROR_HANDLING"] == "0"
        assert "NCCL_MULTI_RANK_GPU_ENABLE" not in found

    def test_several_ranks_on_one_gpu_are_allowed_to(self) -> None:
        assert environment(PluginConfig(device_of_rank=(0, 0)), 2, {})["NCCL_MULTI_RANK_GPU_ENABLE"] == "1"

    def test_the_users_choices_stay_where_there_is_one(self) -> None:
        given = {"NCCL_SOCKET_IFNAME": "eth0", "VLLM_ALLREDUCE_USE_SYMM_MEM": "1"}
        found = environment(PluginConfig(), 2, given)
        assert "NCCL_SOCKET_IFNAME" not in found
        assert found["VLLM_ALLREDUCE_USE_SYMM_MEM"] == "0", "this is none"

    def test_custom_all_reduce_goes_off(self) -> None:
        config = SimpleNamespace(parallel_config=SimpleNamespace(disable_custom_all_reduce=False))
        switch_off_shortcuts(config)
        assert config.parallel_config.disable_custom_all_reduce


class Memory:
    device = torch.device("cpu")

    def __init__(self, *free: int) -> None:
        self.free = list(free)

    def memory(self) -> tuple[int, int]:
        return (self.free.pop(0) if len(self.free) > 1 else self.free[0]), 1000


class TestRoom:
    def test_it_is_waited_for(self) -> None:
        memory = Memory(100, 100, 400)
        assert await_memory(memory, 0.4)  # type: ignore[arg-type]
        assert memory.free == [400]

    def test_not_for_ever(self) -> None:
        done: list[bool] = []
        waiting = threading.Thread(target=lambda: done.append(await_memory(Memory(100), 0.4, 0.1)), daemon=True)  # type: ignore[arg-type]
        waiting.start()
        waiting.join(20)
        assert done == [False]


class TestRefusals:
    def test_eager_on_a_gpu_is_fine(self) -> None:
        assert unsupported(fake(**GPU)) == []

    @pytest.mark.parametrize(
        ("name", "value", "feature"),
        [
            ("model_config.enforce_eager", False, "CUDA graphs"),
            ("model_config.enable_cumem_allocator", True, "vLLM's own memory allocator"),
        ],
    )
    def test_by_name_and_only_on_gpus(self, name: str, value: bool, feature: str) -> None:
        assert [refusal.feature for refusal in unsupported(fake(**GPU | {name: value}))] == [feature]
        assert unsupported(fake(**GPU | {name: value, "device_config.device_type": "cpu"})) == []

    def test_memory_that_peers_cannot_map(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PYTORCH_CUDA_ALLOC_CONF", "max_split_size_mb:64, expandable_segments:True")
        (refusal,) = unsupported(fake(**GPU))
        assert "CUDA IPC" in refusal.reason
        assert unsupported(fake()) == []

    @pytest.mark.parametrize(
        ("settings", "found"),
        [
            ({}, ""),
            ({"PYTORCH_ALLOC_CONF": "expandable_segments:False,max_split_size_mb:64"}, ""),
            ({"PYTORCH_ALLOC_CONF": "backend:cudaMallocAsync"}, "PYTORCH_ALLOC_CONF=backend:cudaMallocAsync"),
            (
                {"PYTORCH_CUDA_ALLOC_CONF": "a:1, expandable_segments:True"},
                "PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True",
            ),
        ],
    )
    def test_the_setting_is_named(self, settings: dict[str, str], found: str) -> None:
        assert unshareable(settings) == found
