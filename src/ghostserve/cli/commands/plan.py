"""`ghostserve plan`: its options, and what they choose among the known hardware and failures."""

from pathlib import Path

from ghostserve.cli.options import Ranks, Size
from ghostserve.errors import ConfigError

__all__ = ["plan"]


def plan(
    model: str,
    /,
    *,
    tensor_parallel_size: Ranks = 8,
    hardware: str = "h100",
    failures: str = "llama-3",
    context: int = 65536,
    sequences: int = 16,
    host_memory: Size = 256 << 30,
    max_pause: float = 10.0,
    max_parity: int = 4,
    overhead: float = 0.0,
    link_gbps: float | None = None,
    ssd_gbps: float | None = None,
    mfu: float | None = None,
    detect_s: float | None = None,
    rejoin_s: float | None = None,
    hours_between_failures: float | None = None,
    constants: Path | None = None,
    output: Path | None = None,
    plot: Path | None = None,
) -> int:
    """Weigh the ways to protect the KV cache: memory, pause and work lost, and which one to take (docs/planning.md).

    Parameters
    ----------
    model
        A checkpoint folder with a config.json, or llama-3-8b, llama-3-70b, llama-3.1-405b.
    tensor_parallel_size
        GPUs of one engine.
    hardware
        h100 or h200.
    failures
        How often GPUs fail: llama-3, meta-rsc or none.
    context
        Tokens of each sequence in flight when something fails.
    sequences
        Sequences in flight.
    host_memory
        Bytes of host memory that protection may take, such as 64G.
    max_pause
        Seconds that a failure may stop the streams.
    max_parity
        The largest K to weigh.
    overhead
        The part of an engine's time that protection costs while nothing fails, 0.01 = 1 %.
    link_gbps
        GB/s between a GPU and host memory, in place of the hardware's.
    ssd_gbps
        GB/s of the disk.
    mfu
        The part of a GPU's peak that a prefill reaches.
    detect_s
        Seconds until a death is noticed.
    rejoin_s
        Seconds until a standby has the lost rank's place.
    hours_between_failures
        Of one GPU, in place of the preset's.
    constants
        A JSON file of ghostserve simulate --calibrate: its prefill rate, link, disk, detect and rejoin times are taken;
        what is given here as well comes first.
    output
        Write inputs and plan to this file, as JSON.
    plot
        Draw the strategies into this PNG file.
    """
    from msgspec.structs import replace

    from ghostserve.cli.plan import run_plan
    from ghostserve.plan import FAILURES, HARDWARE, Wishes, measured_hardware, read_shape

    for name, value, known in (("hardware", hardware, HARDWARE), ("failures", failures, FAILURES)):
        if value not in known:
            raise ConfigError(f"{name} {value!r} is unknown; allowed: {', '.join(known)}")
    rates = {"link_gbps": link_gbps, "ssd_gbps": ssd_gbps, "mfu": mfu, "detect_s": detect_s, "rejoin_s": rejoin_s}
    base, shape = HARDWARE[hardware], read_shape(model)
    if constants is not None:
        from ghostserve.fleetsim import read_constants

        c = read_constants(constants)
        if c.ranks != tensor_parallel_size:
            raise ConfigError(f"{constants} was measured with {c.ranks} ranks, not {tensor_parallel_size}")
        base = measured_hardware(
            base,
            shape,
            ranks=c.ranks,
            prefill_tokens_per_s=c.prefill_tokens_per_s,
            link_bytes_per_s=c.rebuild_bytes_per_s,
            ssd_bytes_per_s=c.ssd_bytes_per_s,
            detect_s=c.detect_s,
            rejoin_s=c.rejoin_s,
            source=str(constants),
        )
    chosen = replace(base, **{name: rate for name, rate in rates.items() if rate is not None})
    often = FAILURES[failures]
    if hours_between_failures is not None:
        if not hours_between_failures > 0:
            raise ConfigError(f"hours_between_failures must be above 0, not {hours_between_failures}")
        often = replace(often, per_gpu_hour=1 / hours_between_failures, source="--hours-between-failures")
    wishes = Wishes(
        tensor_parallel_size=tensor_parallel_size,
        context=context,
        sequences=sequences,
        host_bytes=host_memory,
        max_pause=max_pause,
        max_parity=max_parity,
        overhead=overhead,
    )
    return run_plan(shape, chosen, often, wishes, output=output, plot=plot)
