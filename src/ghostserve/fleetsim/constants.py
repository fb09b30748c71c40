"""What one engine does in how much time: the small JSON file that a fleet is simulated from."""

import math
from pathlib import Path

import msgspec

from ghostserve.errors import ConfigError

__all__ = ["Constants", "read_constants"]


class Constants(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One engine. A step takes decode_step_s + decode_seq_s x decodes + prefill tokens / prefill_tokens_per_s.

    With a prefill in it, it takes prefill_step_s more: attention runs in two ways then.

    The defaults are no measurement: a 70B Llama at TP 8 on H100, from `ghostserve plan` and data sheets.
    """

    ranks: int = 8
    prefill_tokens_per_s: float = 22429.0
    decode_step_s: float = 0.009
    decode_seq_s: float = 0.0001
    prefill_step_s: float = 0.0
    detect_s: float = 0.1
    rejoin_s: float = 3.0
    cold_start_s: float = 120.0
    rebuild_bytes_per_s: float = 54.1e9
    host_copy_bytes_per_s: float = 54.1e9
    ssd_bytes_per_s: float = 5e9
    kv_bytes_per_token: int = 327_680
    max_num_seqs: int = 64
    max_num_batched_tokens: int = 8192
    standby_s: float = 0.0
    """From a failure until the next standby is ready, ..."""
    standby_overhead: float = 0.0
    """... and the part by which steps take longer meanwhile, where its start takes the ranks' cores."""
    overhead: dict[str, float] = msgspec.field(default_factory=dict)
    """By strategy: the part by which steps take longer, 0.01 = 1 %."""

    def __post_init__(self) -> None:
        zero = (
            "decode_step_s",
            "decode_seq_s",
            "detect_s",
            "rejoin_s",
            "cold_start_s",
            "standby_s",
            "standby_overhead",
            "prefill_step_s",
        )
        for name in self.__struct_fields__:
            value = getattr(self, name)
            if name == "overhead":
                if any(not (math.isfinite(part) and part >= 0) for part in value.values()):
                    raise ConfigError(f"overhead must be numbers of at least 0, not {value}")
            elif not math.isfinite(value) or value < 0 or (value == 0 and name not in zero):
                raise ConfigError(
                    f"{name} must be a number {'of at least' if name in zero else 'above'} 0, not {value}"
                )
        if self.max_num_batched_tokens < self.max_num_seqs:
            raise ConfigError(
                f"max_num_batched_tokens {self.max_num_batched_tokens} is below max_num_seqs {self.max_num_seqs}"
            )


def read_constants(path: Path) -> Constants:
    """Raises `ConfigError` that names the file and what is allowed."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=Constants)
    except (OSError, ConfigError, msgspec.DecodeError, msgspec.ValidationError) as error:
        allowed = ", ".join(Constants.__struct_fields__)
        raise ConfigError(f"{path}: {error}; allowed: a JSON object with any of {allowed}") from error
