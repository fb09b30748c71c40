"""What a soak is asked to do."""

from dataclasses import dataclass

from ghostserve.codes.registry import make_code
from ghostserve.errors import ConfigError

__all__ = ["ENGINES", "SABOTAGES", "SoakSettings"]

ENGINES = ("embedded", "vllm")
SABOTAGES = ("skip-rebuild",)


@dataclass(frozen=True, kw_only=True)
class SoakSettings:
    """Raises `ConfigError` for what can't be run.

    Parameters
    ----------
    kills
        Processes to strike.
    seed
        Decides whom, how and when, and what the clients ask.
    clients
        Streams that run at once.
    model
        A checkpoint; None: a small one with random weights, made for this run.
    step_deadline
        Seconds after which a rank that was stopped counts as hanging.
    phase_deadline
        Seconds after which one that was stopped during a recovery does, or as a standby.
    sabotage
        skip-rebuild: newcomers keep their poisoned KV, to prove that the comparison can fail.
    """

    kills: int = 100
    seed: int = 0
    clients: int = 4
    engine: str = "embedded"
    model: str | None = None
    tensor_parallel_size: int = 3
    parity: str = "rs:2"
    standbys: int = 2
    step_deadline: float = 2.0
    phase_deadline: float = 30.0
    sabotage: str | None = None

    def __post_init__(self) -> None:
        for name, least in (("kills", 1), ("seed", 0), ("clients", 1), ("tensor_parallel_size", 2), ("standbys", 1)):
            value = getattr(self, name)
            if value < least:
                raise ConfigError(f"{name} must be at least {least}, not {value}")
        for name in ("step_deadline", "phase_deadline"):
            value = getattr(self, name)
            if not 0 < value < float("inf"):
                raise ConfigError(f"{name} must be a positive number of seconds, not {value}")
        if self.engine not in ENGINES:
            raise ConfigError(f"engine {self.engine!r} is unknown; allowed: {', '.join(ENGINES)}")
        if self.sabotage is not None and self.sabotage not in SABOTAGES:
            raise ConfigError(f"sabotage {self.sabotage!r} is unknown; allowed: {', '.join(SABOTAGES)}")
        if self.parity == "none":
            raise ConfigError("parity is 'none': a soak needs a code that survives one lost rank, such as rs:1")
        make_code(self.parity, self.tensor_parallel_size)

    @property
    def covered(self) -> int:
        """Ranks that may be lost at once without anything being recomputed."""
        code = make_code(self.parity, self.tensor_parallel_size)
        assert code is not None
        return min(code.k, self.tensor_parallel_size)
