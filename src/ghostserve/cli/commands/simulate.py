"""`ghostserve simulate`: its options, and which of its three jobs they ask for."""

from pathlib import Path

from ghostserve.cli.options import Ranks
from ghostserve.errors import ConfigError

__all__ = ["simulate"]


def simulate(
    *,
    gpus: int = 1024,
    hours: float = 24.0,
    constants: Path | None = None,
    trace: Path | None = None,
    rate: float = 0.2,
    scale_rate: float = 1.0,
    max_tokens: int = 32768,
    failures: str = "llama-3",
    per_gpu_hour: float | None = None,
    gpu_share: float | None = None,
    spares: int = 16,
    repair_hours: float = 4.0,
    strategies: str | None = None,
    seed: int = 0,
    calibrate: str | None = None,
    check: str | None = None,
    tensor_parallel_size: Ranks = 2,
    rounds: int = 5,
    requests: int = 40,
    constants_out: Path | None = None,
    output: Path | None = None,
    plot: Path | None = None,
) -> int:
    """Simulate a fleet under failures: every strategy with the same arrivals and faults (docs/planning.md).

    Parameters
    ----------
    gpus
        GPUs of the fleet.
    hours
        Simulated time.
    constants
        A JSON file with what one engine does in how much time; assumed figures of a 70B Llama on 8 H100 by default.
    trace
        An Azure (CSV) or Mooncake (JSON lines) trace, repeated on every engine; Poisson arrivals by default.
    rate
        Poisson: requests a second to each engine, of 500 to 8000 prompt and 50 to 500 output tokens.
    scale_rate
        A trace: 2 lets its requests come twice as fast.
    max_tokens
        A trace: prompt and output of a request together.
    failures
        How often GPUs fail: llama-3, meta-rsc or none.
    per_gpu_hour
        Failures of one GPU in an hour, in place of the preset's.
    gpu_share
        The part of the failures that lose a GPU, in place of the preset's; the rest lose the host with its memory.
    spares
        GPUs that wait for any engine.
    repair_hours
        Until a lost GPU is a spare again.
    strategies
        Such as none,parity:1; all by default.
    seed
        Decides arrivals and faults.
    calibrate
        Simulate nothing: measure the constants on the embedded engine, on this machine's CPU. A checkpoint, or tiny
        for a small model that is made for it.
    check
        The same, then one small scenario in the engine and in the simulator, side by side. With --constants these
        are checked. The exit code is 1 where they are too far apart.
    tensor_parallel_size
        Ranks of the engine that is measured.
    rounds
        Samples of each figure, and real runs of --check: the median counts.
    requests
        Of the scenario that is checked.
    constants_out
        Write the constants that were measured to this file, for --constants.
    output
        Write settings, constants and outcomes to this file, as JSON.
    plot
        Draw the strategies into this PNG file.
    """
    if calibrate is not None or check is not None:
        from ghostserve.cli.calibrate import run_calibrate, run_check
        from ghostserve.fleetsim import read_constants

        if rounds < 1 or (calibrate is not None and check is not None):
            raise ConfigError(f"either --calibrate or --check, and rounds of at least 1, not {rounds}")
        if calibrate is not None:
            return run_calibrate(calibrate, tensor_parallel_size, rounds=rounds, constants_out=constants_out)
        assert check is not None
        return run_check(
            check,
            tensor_parallel_size,
            rounds=rounds,
            requests=requests,
            seed=seed,
            constants=None if constants is None else read_constants(constants),
            constants_out=constants_out,
            output=output,
        )
    if constants_out is not None:
        raise ConfigError("--constants-out needs --calibrate or --check: nothing is measured without them")
    from ghostserve.cli.simulate import run_fleet
    from ghostserve.fleetsim import STRATEGIES, Constants, FleetSettings, poisson_load, read_constants, trace_load
    from ghostserve.plan import FAILURES
    from ghostserve.traces import read_trace

    if failures not in FAILURES:
        raise ConfigError(f"failures {failures!r} is unknown; allowed: {', '.join(FAILURES)}")
    often = FAILURES[failures]
    settings = FleetSettings(
        gpus=gpus,
        seconds=hours * 3600,
        per_gpu_hour=often.per_gpu_hour if per_gpu_hour is None else per_gpu_hour,
        gpu_share=often.gpu_share if gpu_share is None else gpu_share,
        multi_share=often.multi_share,
        spares=spares,
        repair_s=repair_hours * 3600,
        seed=seed,
    )
    if trace is None:
        load = poisson_load(rate, settings.seconds, prompt=(500, 8000), output=(50, 500), seed=seed)
    else:
        found = read_trace(trace, scale_rate=scale_rate, max_tokens=max_tokens)
        load = trace_load(found, settings.seconds, seed=seed)
    engine = Constants() if constants is None else read_constants(constants)
    chosen = strategies.split(",") if strategies else STRATEGIES
    return run_fleet(settings, engine, load, chosen, output=output, plot=plot)
