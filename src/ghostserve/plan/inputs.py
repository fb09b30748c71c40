"""What a plan stands on besides the model: hardware, failures and wishes, each figure with its source."""

import math

import msgspec

from ghostserve.errors import ConfigError

__all__ = ["FAILURES", "HARDWARE", "Failures", "Hardware", "Wishes"]


def _check(what: msgspec.Struct, *, above: tuple[str, ...] = (), least: tuple[str, ...] = ()) -> None:
    for name in (*above, *least):
        value = getattr(what, name)
        if not math.isfinite(value) or value < 0 or (value == 0 and name in above):
            raise ConfigError(f"{name} must be a number {'above 0' if name in above else 'of at least 0'}, not {value}")


class Hardware(msgspec.Struct, frozen=True, kw_only=True):
    """One GPU and its host link. GB are 1e9 bytes; `mfu` is the part of `tflops` that a prefill reaches."""

    name: str
    tflops: float
    hbm_gbps: float
    link_gbps: float = 54.1
    """Measured: copies to pinned host memory on a PCIe 5 x16 H100 (docs/benchmarks.md)."""
    ssd_gbps: float = 5.0
    """Assumed: one PCIe 4 NVMe disk, shared by all ranks of the engine."""
    mfu: float = 0.4
    """Assumed."""
    detect_s: float = 0.1
    """Measured: 0.08 s to notice a death, on CPU."""
    rejoin_s: float = 3.0
    """Assumed, with a standby: group, weights and caches took 1 s on CPU with a small model."""
    source: str = ""

    def __post_init__(self) -> None:
        _check(self, above=("tflops", "hbm_gbps", "link_gbps", "ssd_gbps", "mfu"), least=("detect_s", "rejoin_s"))
        if self.mfu > 1:
            raise ConfigError(f"mfu must be above 0 and at most 1, not {self.mfu}")


class Failures(msgspec.Struct, frozen=True, kw_only=True):
    """`per_gpu_hour`: interruptions of any kind; `gpu_share` of them lose a GPU, the rest the host with its memory.

    `multi_share`: the part of those that lose a GPU which lose a second one with it (assumed; nobody published it).
    """

    name: str
    per_gpu_hour: float
    gpu_share: float = 0.587
    multi_share: float = 0.02
    source: str = ""

    def __post_init__(self) -> None:
        _check(self, least=("per_gpu_hour", "gpu_share", "multi_share"))
        for name in ("gpu_share", "multi_share"):
            if getattr(self, name) > 1:
                raise ConfigError(f"{name} must be 0 to 1, not {getattr(self, name)}")


class Wishes(msgspec.Struct, frozen=True, kw_only=True):
    """`context` tokens of each of `sequences` in flight, `host_bytes` for protection, `max_pause` seconds endured.

    `overhead`: the part of an engine's time that any protection costs while nothing fails, beside what the links can't
    carry.
    """

    tensor_parallel_size: int = 8
    context: int = 65536
    sequences: int = 16
    host_bytes: int = 256 << 30
    max_pause: float = 10.0
    max_parity: int = 4
    overhead: float = 0.0

    def __post_init__(self) -> None:
        _check(self, above=("context", "sequences", "max_pause"), least=("host_bytes", "overhead", "max_parity"))
        if not 2 <= self.tensor_parallel_size <= 128:
            raise ConfigError(f"tensor_parallel_size must be 2 to 128, not {self.tensor_parallel_size}")


HARDWARE = {
    "h100": Hardware(name="h100", tflops=989, hbm_gbps=3350, source="NVIDIA data sheet, SXM, dense BF16"),
    "h200": Hardware(name="h200", tflops=989, hbm_gbps=4800, source="NVIDIA data sheet, SXM, dense BF16"),
}
FAILURES = {
    "llama-3": Failures(
        name="llama-3",
        per_gpu_hour=419 / (54 * 24 * 16384),
        source="Llama 3: 419 interruptions in 54 days on 16,384 H100, 58.7 % of them GPU-related",
    ),
    "meta-rsc": Failures(
        name="meta-rsc",
        per_gpu_hour=1 / (7.9 * 1024),
        source="Meta RSC: 7.9 h between failures at 1,024 GPUs; the share is Llama 3's",
    ),
    "none": Failures(name="none", per_gpu_hour=0.0, source="nothing ever fails"),
}
