"""What the demo is asked to do."""

from dataclasses import dataclass

from ghostserve.engine.config import EngineConfig
from ghostserve.errors import ConfigError

__all__ = ["SABOTAGES", "DemoSettings"]

SABOTAGES = ("skip-rebuild",)
_LEAST_TOKENS = 24  # fewer leave no room for two kills while all stream


@dataclass(frozen=True, kw_only=True)
class DemoSettings:
    """Raises `ConfigError` for what the demo can't show."""

    model: str | None = None
    tensor_parallel_size: int = 3
    parity: str = "rs:1"
    max_tokens: int = 96
    longest_prompt: int = 1450
    sabotage: str | None = None

    def __post_init__(self) -> None:
        if self.sabotage is not None and self.sabotage not in SABOTAGES:
            raise ConfigError(f"sabotage {self.sabotage!r} is unknown; allowed: {', '.join(SABOTAGES)}")
        if self.max_tokens < _LEAST_TOKENS:
            raise ConfigError(f"max_tokens must be at least {_LEAST_TOKENS}, not {self.max_tokens}")
        if self.longest_prompt < 1:
            raise ConfigError(f"longest_prompt must be at least 1, not {self.longest_prompt}")
        if self.parity == "none":
            raise ConfigError("parity is 'none': the demo needs a code that survives one lost rank, such as rs:1")

    def engine_config(self, model: str) -> EngineConfig:
        """The engine that the demo runs: small, so that it fits a laptop."""
        return EngineConfig(
            device="cpu",  # its ranks are more than most machines have GPUs
            model=model,
            tensor_parallel_size=self.tensor_parallel_size,
            parity=self.parity,
            max_num_seqs=8,
            kv_cache_memory=256 << 20,
        )
