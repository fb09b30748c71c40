"""What can't be protected is refused by name, all reasons at once, or served unprotected where that was asked for."""

from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from ghostserve.errors import ConfigError
from ghostserve.vllm.config import PluginConfig
from ghostserve.vllm.support import SCHEDULER, WORKER, check, check_classes, check_version, unsupported

PLAIN: dict[str, Any] = {
    "parallel_config.tensor_parallel_size": 2,
    "parallel_config.pipeline_parallel_size": 1,
    "parallel_config.data_parallel_size": 1,
    "parallel_config.enable_expert_parallel": False,
    "parallel_config.enable_eplb": False,
    "parallel_config.enable_elastic_ep": False,
    "parallel_config.enable_fault_tolerance": False,
    "parallel_config.prefill_context_parallel_size": 1,
    "parallel_config.decode_context_parallel_size": 1,
    "parallel_config.nnodes": 1,
    "parallel_config.use_ubatching": False,
    "use_v2_model_runner": False,
    "speculative_config": None,
    "diffusion_config": None,
    "lora_config": None,
    "weight_transfer_config": None,
    "kv_transfer_config": None,
    "ec_transfer_config": None,
    "scheduler_config.disable_hybrid_kv_cache_manager": False,
    "cache_config.kv_sharing_fast_prefill": False,
    "cache_config.cache_dtype": "auto",
    "model_config.enable_sleep_mode": False,
    "model_config.enable_prompt_embeds": False,
    "model_config.multimodal_config": None,
    "model_config.runner_type": "generate",
    "model_config.is_encoder_decoder": False,
    "model_config.has_inner_state": False,
    "model_config.is_hybrid": False,
    "model_config.is_attention_free": False,
    "model_config.use_mla": False,
    "model_config.hf_text_config": SimpleNamespace(),
    "model_config.get_sliding_window": lambda: None,
}
WINDOW = {
    "model_config.get_sliding_window": lambda: 24,
    "model_config.hf_text_config": SimpleNamespace(layer_types=["sliding_attention", "full_attention"]),
}
CASES: list[tuple[dict[str, Any], str]] = [
    ({"parallel_config.tensor_parallel_size": 1}, "tensor_parallel_size 1"),
    ({"parallel_config.pipeline_parallel_size": 2}, "pipeline parallelism"),
    ({"parallel_config.data_parallel_size": 2}, "data parallelism"),
    ({"parallel_config.enable_expert_parallel": True}, "expert parallelism"),
    ({"parallel_config.enable_eplb": True}, "expert parallelism"),
    ({"parallel_config.enable_elastic_ep": True}, "elastic expert parallelism"),
    ({"parallel_config.enable_fault_tolerance": True}, "--enable-fault-tolerance"),
    ({"parallel_config.prefill_context_parallel_size": 2}, "context parallelism"),
    ({"parallel_config.decode_context_parallel_size": 2}, "context parallelism"),
    ({"parallel_config.nnodes": 2}, "several nodes"),
    ({"parallel_config.use_ubatching": True}, "dual batch overlap"),
    ({"use_v2_model_runner": True}, "model runner V2"),
    ({"speculative_config": object()}, "speculative decoding"),
    ({"diffusion_config": object()}, "diffusion decoding"),
    ({"lora_config": object()}, "LoRA"),
    ({"weight_transfer_config": object()}, "weight transfer"),
    ({"kv_transfer_config": object()}, "a KV connector"),
    ({"ec_transfer_config": object()}, "an encoder-cache connector"),
    ({"cache_config.kv_sharing_fast_prefill": True}, "KV sharing between layers"),
    ({"model_config.hf_text_config": SimpleNamespace(num_kv_shared_layers=4)}, "KV sharing between layers"),
    ({"cache_config.cache_dtype": "fp8"}, "a quantized KV cache"),
    ({"model_config.enable_sleep_mode": True}, "sleep mode"),
    ({"model_config.enable_prompt_embeds": True}, "prompt embeddings"),
    ({"model_config.multimodal_config": SimpleNamespace(language_model_only=False)}, "multimodal input"),
    ({"model_config.runner_type": "pooling"}, "pooling models"),
    ({"model_config.is_encoder_decoder": True}, "encoder-decoder models"),
    ({"model_config.has_inner_state": True}, "Mamba, hybrid or attention-free models"),
    ({"model_config.is_hybrid": True}, "Mamba, hybrid or attention-free models"),
    ({"model_config.is_attention_free": True}, "Mamba, hybrid or attention-free models"),
    ({"model_config.use_mla": True}, "multi-head latent attention"),
    ({"model_config.get_sliding_window": lambda: 24}, "sliding-window or chunked attention"),
    (WINDOW, "sliding-window or chunked attention"),
    (
        {"model_config.hf_text_config": SimpleNamespace(attention_chunk_size=8192)},
        "sliding-window or chunked attention",
    ),
]


def fake(**changes: Any) -> Any:
    """A config with the attributes that are asked for, and no others."""
    config = SimpleNamespace()
    for path, value in (PLAIN | changes).items():
        part, _, name = path.rpartition(".")
        if part and not hasattr(config, part):
            setattr(config, part, SimpleNamespace())
        setattr(getattr(config, part) if part else config, name, value)
    return config


@pytest.mark.parametrize(("changes", "feature"), CASES, ids=lambda case: case if isinstance(case, str) else "")
def test_each_feature_is_refused_alone(changes: dict[str, Any], feature: str) -> None:
    assert [refusal.feature for refusal in unsupported(fake(**changes))] == [feature]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        WINDOW | {"scheduler_config.disable_hybrid_kv_cache_manager": True},
        {"model_config.multimodal_config": SimpleNamespace(language_model_only=True)},
        {"model_config.hf_text_config": SimpleNamespace(num_kv_shared_layers=0, attention_chunk_size=None)},
        {"cache_config.cache_dtype": "bfloat16"},
    ],
)
def test_what_is_protected(changes: dict[str, Any]) -> None:
    assert check(fake(**changes), PluginConfig()) == []


def test_all_reasons_come_at_once() -> None:
    config = fake(**{"lora_config": object(), "parallel_config.pipeline_parallel_size": 2})
    with pytest.raises(ConfigError) as caught:
        check(config, PluginConfig())
    first, *reasons, hint = str(caught.value).splitlines()
    assert first == "GhostServe can't protect what this configuration uses:"
    assert [reason.partition(":")[0] for reason in reasons] == ["1. pipeline parallelism", "2. LoRA"]
    assert "--parity-allow-unprotected" in hint


def test_unprotected_where_it_was_asked_for() -> None:
    config = fake(lora_config=object(), speculative_config=object())
    refusals = check(config, PluginConfig(allow_unprotected=True))
    assert [refusal.feature for refusal in refusals] == ["speculative decoding", "LoRA"]


@pytest.mark.parametrize("name", ["parallel_config.enable_elastic_ep", "parallel_config.enable_fault_tolerance"])
def test_not_even_unprotected(name: str) -> None:
    with pytest.raises(ConfigError, match="not even with allow_unprotected"):
        check(fake(**{name: True, "lora_config": object()}), PluginConfig(allow_unprotected=True))


def test_a_code_for_fewer_ranks_is_refused() -> None:
    with pytest.raises(ConfigError, match="parity 'rs:200' with 100 ranks"):
        check(fake(**{"parallel_config.tensor_parallel_size": 100}), PluginConfig(parity="rs:200"))


@pytest.mark.parametrize("version", ["0.32.0", "0.32.5", "0.32", "0.32.0+cu130", "0.32.1.dev3+g12ab", "0.32.0rc1"])
def test_supported_versions(version: str) -> None:
    check_version(version)


@pytest.mark.parametrize("version", ["0.31.9", "0.33.0", "0.320.0", "1.32.0", "0.3", "dev", ""])
def test_other_versions_are_refused_in_one_sentence(version: str) -> None:
    with pytest.raises(ConfigError, match=r"works with vLLM 0\.32, and .*pip install") as caught:
        check_version(version)
    assert len(str(caught.value).splitlines()) == 1


# What follows asks vLLM itself.

MakeConfig = Callable[..., Any]


@pytest.fixture(scope="module")
def make_config(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MakeConfig]:
    """A real `VllmConfig` of a model that is nothing but its config."""
    pytest.importorskip("vllm")
    from transformers import Gemma2Config, LlamaConfig, MistralConfig
    from vllm.engine.arg_utils import EngineArgs

    shape = {"vocab_size": 320, "hidden_size": 128, "intermediate_size": 96, "num_hidden_layers": 2, "head_dim": 32,
             "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512}  # fmt: skip
    kinds = {
        "llama": LlamaConfig(architectures=["LlamaForCausalLM"], **shape),
        "mistral": MistralConfig(architectures=["MistralForCausalLM"], sliding_window=24, **shape),
        "gemma2": Gemma2Config(architectures=["Gemma2ForCausalLM"], sliding_window=24, **shape),
    }

    def make(kind: str = "llama", **options: Any) -> Any:
        folder = tmp_path_factory.mktemp(kind)
        kinds[kind].save_pretrained(folder)
        options = {"tensor_parallel_size": 2, "distributed_executor_backend": "mp", "dtype": "float32"} | options
        return EngineArgs(model=str(folder), skip_tokenizer_init=True, **options).create_engine_config()

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLLM_USE_V2_MODEL_RUNNER", "0")
        yield make


def test_a_plain_vllm_config_is_protected_and_has_every_attribute(make_config: MakeConfig) -> None:
    config = make_config(additional_config={"ghostserve": {"parity": "rs:1"}})
    assert check_version(__import__("vllm").__version__) is None
    assert check(config, PluginConfig()) == []
    for path in PLAIN:
        found = config
        for name in path.split("."):
            assert hasattr(found, name), path
            found = getattr(found, name)


@pytest.mark.parametrize(
    ("kind", "options", "features"),
    [
        ("llama", {"tensor_parallel_size": 1}, ["tensor_parallel_size 1"]),
        ("llama", {"pipeline_parallel_size": 2}, ["pipeline parallelism"]),
        ("llama", {"enable_lora": True}, ["LoRA"]),
        (
            "llama",
            {"speculative_config": {"method": "ngram", "num_speculative_tokens": 2, "prompt_lookup_max": 2}},
            ["speculative decoding"],
        ),
        (
            "llama",
            {"kv_transfer_config": {"kv_connector": "OffloadingConnector", "kv_role": "kv_both"}},
            ["a KV connector"],
        ),
        ("mistral", {}, ["sliding-window or chunked attention"]),
        ("mistral", {"disable_sliding_window": True, "max_model_len": 24}, []),
        ("gemma2", {}, ["sliding-window or chunked attention"]),
        ("gemma2", {"disable_hybrid_kv_cache_manager": True}, []),
    ],
)
def test_vllms_own_options(make_config: MakeConfig, kind: str, options: dict[str, Any], features: list[str]) -> None:
    if "kv_transfer_config" in options:
        from vllm.config import KVTransferConfig

        options = {"kv_transfer_config": KVTransferConfig(**options["kv_transfer_config"])}
    assert [refusal.feature for refusal in unsupported(make_config(kind, **options))] == features


def test_v2_is_refused_with_the_way_out(make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    config = make_config()  # without Triton it can't be made with V2
    monkeypatch.setenv("VLLM_USE_V2_MODEL_RUNNER", "1")
    (refusal,) = unsupported(config)
    assert "VLLM_USE_V2_MODEL_RUNNER=0" in refusal.reason


def test_the_executor_alone_is_refused_with_the_flag_that_is_missing():
    config = SimpleNamespace(
        parallel_config=SimpleNamespace(worker_cls="vllm.v1.worker.cpu_worker.CPUWorker"),
        scheduler_config=SimpleNamespace(scheduler_cls=SCHEDULER),
    )
    with pytest.raises(ConfigError, match="--worker-cls ghostserve"):
        check_classes(config)
    config.parallel_config.worker_cls = WORKER
    check_classes(config)
    config.scheduler_config.scheduler_cls = None
    with pytest.raises(ConfigError, match="--scheduler-cls is None"):
        check_classes(config)
