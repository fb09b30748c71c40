"""`ghostserve serve`: its options."""

from typing import Annotated

from cyclopts import Parameter

from ghostserve.cli.options import Ranks, Size
from ghostserve.engine.config import EngineConfig
from ghostserve.errors import ConfigError
from ghostserve.recovery.hybrid import Policy
from ghostserve.server.settings import ServerSettings

__all__ = ["serve"]

DEFAULTS = EngineConfig(model="")
LIMITS = ServerSettings()

Limits = Annotated[ServerSettings, Parameter(name="*")]
Keys = Annotated[list[str] | None, Parameter(negative="")]


def serve(
    checkpoint: str,
    /,
    *,
    engine: str = "embedded",
    tensor_parallel_size: Ranks = DEFAULTS.tensor_parallel_size,
    protect: str = DEFAULTS.protect,
    protect_folder: str = DEFAULTS.protect_folder,
    parity: str | None = None,
    host: str = "127.0.0.1",
    port: int = 8000,
    api_key: Keys = None,
    served_model_name: str | None = None,
    dtype: str = DEFAULTS.dtype,
    max_model_len: int | None = DEFAULTS.max_model_len,
    max_num_seqs: int = DEFAULTS.max_num_seqs,
    max_num_batched_tokens: int = DEFAULTS.max_num_batched_tokens,
    max_queue: int = DEFAULTS.max_queue,
    block_size: int = DEFAULTS.block_size,
    kv_cache_memory: Size = DEFAULTS.kv_cache_memory,
    flush_tokens: int = DEFAULTS.flush_tokens,
    max_unprotected_tokens: int = DEFAULTS.max_unprotected_tokens,
    encoder: str = DEFAULTS.encoder,
    parity_memory: Size | None = DEFAULTS.parity_memory,
    standbys: int = DEFAULTS.standbys,
    recovery: Policy = DEFAULTS.recovery,
    device: str = DEFAULTS.device,
    data_path: str = DEFAULTS.data_path,
    pin_weights: bool = DEFAULTS.pin_weights,
    scrub_rate: Size = DEFAULTS.scrub_rate,
    step_deadline: float = DEFAULTS.step_deadline,
    phase_deadline: float = DEFAULTS.phase_deadline,
    seed: int = DEFAULTS.seed,
    log_level: str = "info",
    limits: Limits = LIMITS,
) -> int:
    """Serve a model over the OpenAI API.

    Parameters
    ----------
    checkpoint
        A transformers checkpoint folder, or a .gguf file.
    engine
        embedded, or vllm: stock vLLM with GhostServe's plug-in; all options that are not GhostServe's are vLLM's then.
    tensor_parallel_size
        Worker processes that share the model; must divide its attention heads.
    protect
        What is kept of the KV cache outside the workers: parity, none, replicate-host or replicate-ssd.
    protect_folder
        Where replicate-ssd writes its copies; the folder for temporary files by default.
    parity
        The code that protects the KV cache: none, xor, rdp, or rs:K to survive the loss of K ranks at once; rs:1 by
        default.
    host
        The address to listen on.
    port
        The port to listen on; 0 takes a free one.
    api_key
        A key that requests must bring as a bearer token; may be given several times. By default those of the
        environment's GHOSTSERVE_API_KEY, separated by spaces.
    served_model_name
        The name that requests give as "model"; the checkpoint's own by default.
    dtype
        auto, float32, bfloat16 or float16.
    max_model_len
        Tokens that a prompt and its completion may have together.
    max_num_seqs
        Sequences that run at once.
    max_num_batched_tokens
        Tokens of one step over all sequences; long prompts are cut into chunks.
    max_queue
        Sequences that may wait for one of the running ones to end; requests beyond them get 429.
    block_size
        Tokens of one KV cache block.
    kv_cache_memory
        Bytes of KV cache over all ranks, such as 512M or 4G.
    flush_tokens
        Decode tokens of a sequence between two flushes to parity.
    max_unprotected_tokens
        The most tokens that may wait for their flush.
    encoder
        Who encodes a chunk: round_robin (one rank) or striped (all of them, a part each).
    parity_memory
        Host bytes for parity, such as 512M; enough for every block by default.
    standbys
        Pre-imported processes that wait to take a lost rank's place.
    recovery
        How lost KV comes back: hybrid (as measured rates say), rebuild, or recompute where the bits are the same.
    device
        cpu, cuda, or auto: cuda where there is a usable GPU.
    data_path
        On CUDA, how KV becomes parity: cuda-ipc, cuda-staged, or auto: the first where it works.
    pin_weights
        On CUDA: keep the weights in host memory too, so that a newcomer copies them instead of reading files.
    scrub_rate
        Bytes a second, such as 16M, that are verified against their checksums while the model runs; 0 for none.
    step_deadline
        Seconds after which a step without an answer counts as a hang.
    phase_deadline
        Seconds that a phase of a recovery (or loading the weights) may take.
    seed
        Seeds the requests that bring no seed of their own.
    log_level
        debug, info, warning or error.
    """
    from ghostserve.cli.serve import choose_keys, run_server

    if parity is not None and protect != DEFAULTS.protect:
        raise ConfigError(f"--parity {parity} names a code for --protect parity, not for {protect}: leave one out")
    if engine != "embedded":  # vllm was taken by `main`
        raise ConfigError(f"engine {engine!r} is unknown; allowed: embedded, vllm")
    config = EngineConfig(
        model=checkpoint,
        tensor_parallel_size=tensor_parallel_size,
        dtype=dtype,
        protect=protect,
        protect_folder=protect_folder,
        parity=DEFAULTS.parity if parity is None else parity,
        flush_tokens=flush_tokens,
        max_unprotected_tokens=max_unprotected_tokens,
        encoder=encoder,
        parity_memory=parity_memory,
        block_size=block_size,
        kv_cache_memory=kv_cache_memory,
        max_model_len=max_model_len,
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=max_num_batched_tokens,
        max_queue=max_queue,
        standbys=standbys,
        recovery=recovery,
        device=device,
        data_path=data_path,
        pin_weights=pin_weights,
        scrub_rate=scrub_rate,
        step_deadline=step_deadline,
        phase_deadline=phase_deadline,
        seed=seed,
    )
    return run_server(
        config,
        limits,
        host=host,
        port=port,
        api_keys=choose_keys(api_key),
        served_model_name=served_model_name,
        log_level=log_level,
    )
