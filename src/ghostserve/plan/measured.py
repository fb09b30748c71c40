"""Hardware as an engine's run has shown it, in place of data sheets."""

from msgspec.structs import replace

from ghostserve.plan.inputs import Hardware
from ghostserve.plan.models import ModelShape

__all__ = ["measured_hardware"]


def measured_hardware(
    hardware: Hardware,
    model: ModelShape,
    *,
    ranks: int,
    prefill_tokens_per_s: float,
    link_bytes_per_s: float,
    ssd_bytes_per_s: float,
    detect_s: float,
    rejoin_s: float,
    source: str,
) -> Hardware:
    """`hardware` with measured rates. The FLOP/s are those that give `model` on `ranks` its measured prefill rate.

    The rates must be of that model: of another one the FLOP/s would say nothing. Raises `ConfigError` for rates of 0.
    """
    return replace(
        hardware,
        name=f"measured ({hardware.name})",
        tflops=prefill_tokens_per_s * 2 * model.parameters / ranks / 1e12,
        mfu=1.0,
        link_gbps=link_bytes_per_s / 1e9,
        ssd_gbps=ssd_bytes_per_s / 1e9,
        detect_s=detect_s,
        rejoin_s=rejoin_s,
        source=source,
    )
