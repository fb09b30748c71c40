"""The engine's settings, checked before anything starts."""

import tempfile
from typing import get_args

import msgspec

from ghostserve.errors import ConfigError
from ghostserve.protect import Strategy, make_strategy
from ghostserve.recovery.hybrid import Policy

__all__ = ["DTYPES", "EngineConfig"]

DTYPES = ("float32", "bfloat16", "float16")
ENCODERS = ("round_robin", "striped")
DEVICES = ("auto", "cpu", "cuda")
DATA_PATHS = ("auto", "cuda-ipc", "cuda-staged")


class EngineConfig(msgspec.Struct, frozen=True, kw_only=True):
    """What `ghostserve serve` takes; names and defaults follow vLLM where it has the same thing.

    Raises `ConfigError` that names the value and what is allowed.
    """

    model: str
    tensor_parallel_size: int = 1
    device: str = "auto"
    """Where the ranks compute; auto = cuda where it is usable. On CUDA rank r takes GPU r modulo their number."""
    data_path: str = "auto"
    """On CUDA, how KV becomes parity: cuda-ipc reads peers' memory in place, cuda-staged goes through host memory."""
    dtype: str = "auto"
    protect: str = "parity"
    """What is kept of the KV cache outside the ranks: parity, none, replicate-host or replicate-ssd."""
    protect_folder: str = msgspec.field(default_factory=tempfile.gettempdir)
    """Where replicate-ssd writes; its file has no name there."""
    parity: str = "rs:1"
    """Which code, where `protect` is parity; "none" is the same as `protect` none."""
    flush_tokens: int = 1
    max_unprotected_tokens: int = 4096
    encoder: str = "round_robin"
    parity_memory: int | None = None
    """Host bytes for parity and its records; None = enough for every block."""
    block_size: int = 16
    kv_cache_memory: int = 1 << 30
    """Bytes of KV cache over all ranks."""
    max_model_len: int | None = None
    max_num_seqs: int = 32
    max_num_batched_tokens: int = 256
    max_queue: int = 256
    standbys: int = 1
    pin_weights: bool = True
    """On CUDA: keep the ranks' weights in host memory too, so that a newcomer copies instead of reading files."""
    recovery: Policy = "hybrid"
    """What is lost is rebuilt, or recomputed where the bits come out the same, or both at once as the rates say."""
    scrub_rate: int = 0
    """Bytes a second, over all ranks and parity, that are verified beside the running model; 0 = none. CPU only."""
    step_deadline: float = 60.0
    """Seconds after which a step without an answer counts as a hang."""
    phase_deadline: float = 120.0
    """Seconds that any phase of a recovery may take before those who have not answered count as lost."""
    max_recovery_attempts: int = 8
    """Recoveries in a row without one finished step after which the engine gives up."""
    seed: int = 0

    def __post_init__(self) -> None:
        self._at_least(1, "tensor_parallel_size", "flush_tokens", "max_unprotected_tokens", "block_size")
        self._at_least(1, "kv_cache_memory", "max_num_seqs", "max_num_batched_tokens", "max_queue")
        self._at_least(1, "max_recovery_attempts")
        self._at_least(0, "standbys", "scrub_rate")
        if self.max_num_batched_tokens < self.max_num_seqs:
            raise ConfigError(
                f"max_num_batched_tokens {self.max_num_batched_tokens} is below max_num_seqs {self.max_num_seqs}:"
                " every running sequence needs at least one token a step"
            )
        for name in ("step_deadline", "phase_deadline"):
            value = getattr(self, name)
            if not 0 < value < float("inf"):
                raise ConfigError(f"{name} must be a positive number of seconds, not {value}")
        if self.encoder not in ENCODERS:
            raise ConfigError(f"encoder {self.encoder!r} is unknown; allowed: {', '.join(ENCODERS)}")
        make_strategy(self.protect, self.parity)
        if self.recovery not in get_args(Policy):
            raise ConfigError(f"recovery {self.recovery!r} is unknown; allowed: {', '.join(get_args(Policy))}")
        if self.scrub_rate and self.strategy.name == "none":
            raise ConfigError(f"scrub_rate {self.scrub_rate} has nothing to verify: protect none keeps no checksums")
        if self.device not in DEVICES:
            raise ConfigError(f"device {self.device!r} is unknown; allowed: {', '.join(DEVICES)}")
        if self.data_path not in DATA_PATHS:
            raise ConfigError(f"data_path {self.data_path!r} is unknown; allowed: {', '.join(DATA_PATHS)}")
        if self.dtype not in ("auto", *DTYPES):
            raise ConfigError(f"dtype {self.dtype!r} is unknown; allowed: auto, {', '.join(DTYPES)}")
        if self.max_model_len is not None and self.max_model_len < 2:
            raise ConfigError(f"max_model_len must be at least 2, not {self.max_model_len}")
        if self.parity_memory is not None and self.parity_memory < 0:
            raise ConfigError(f"parity_memory must not be negative, not {self.parity_memory}")

    @property
    def strategy(self) -> Strategy:
        """What `protect` and `parity` name."""
        return make_strategy(self.protect, self.parity)

    def _at_least(self, low: int, *names: str) -> None:
        for name in names:
            value = getattr(self, name)
            if value < low:
                raise ConfigError(f"{name} must be at least {low}, not {value}")
