"""The `ghostserve` command. What is heavy (torch, transformers) is imported inside the commands only."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, CycloptsError, Parameter, Token

from ghostserve import __version__
from ghostserve.cli.sizes import parse_size
from ghostserve.cli.soak import soak
from ghostserve.engine.config import EngineConfig
from ghostserve.errors import ConfigError, GhostServeError
from ghostserve.recovery.hybrid import Policy
from ghostserve.server.settings import ServerSettings

__all__ = ["app", "main"]

DEFAULTS = EngineConfig(model="")
LIMITS = ServerSettings()


def _size(_: Any, tokens: Sequence[Token]) -> int:
    return parse_size(tokens[0].value)


Ranks = Annotated[int, Parameter(alias="-tp")]
Limits = Annotated[ServerSettings, Parameter(name="*")]
Keys = Annotated[list[str] | None, Parameter(negative="")]
Size = Annotated[int, Parameter(converter=_size, n_tokens=1)]

app = App(
    name="ghostserve",
    help="Keeps LLM streams alive, token for token, when a tensor-parallel worker dies.",
    help_format="plaintext",
    version=__version__,
)
app.command(soak)


@app.command
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


@app.command
def demo(
    *,
    model: str | None = None,
    tensor_parallel_size: Ranks = 3,
    parity: str = "rs:1",
    max_tokens: int = 96,
    longest_prompt: int = 1450,
    sabotage: str | None = None,
    plain: bool = False,
    svg: Path | None = None,
) -> int:
    """Kill two workers under six chat streams, then compare every token with an undisturbed run.

    Exits with 0 only if both recoveries happened and every token and logprob is the same.

    Parameters
    ----------
    model
        A transformers checkpoint folder, or a .gguf file; the bundled SmolLM2-135M-Instruct by default.
    tensor_parallel_size
        Worker processes that share the model.
    parity
        The code that protects the KV cache: xor, rdp or rs:K.
    max_tokens
        Tokens that each stream generates.
    longest_prompt
        Tokens of the longest prompt, without its chat template; fewer where the model's context is short.
    sabotage
        skip-rebuild: the newcomer keeps its poisoned KV, to prove that the comparison can fail.
    plain
        Lines instead of a live picture, as when the output is no terminal.
    svg
        Save the last picture as an SVG file.
    """
    from ghostserve.cli.demo import DemoSettings, run_demo

    settings = DemoSettings(
        model=model,
        tensor_parallel_size=tensor_parallel_size,
        parity=parity,
        max_tokens=max_tokens,
        longest_prompt=longest_prompt,
        sabotage=sabotage,
    )
    return run_demo(settings, plain=plain, svg=svg)


@app.command
def bench(
    which: str = "all",
    /,
    *,
    model: str | None = None,
    tensor_parallel_size: Ranks = 3,
    parity: str = "rs:1",
    rounds: int = 3,
    device: str = "cpu",
    quick: bool = False,
    shape: str | None = None,
    output: Path | None = None,
    plot: Path | None = None,
) -> int:
    """Measure GhostServe on this machine: every figure is a ratio from one run.

    Exits with 1 if a GPU benchmark failed; the others run, and the file has the figures that there are.

    Parameters
    ----------
    which
        codes, overhead, pause, hybrid, or all of these; on a GPU kernels, checkpoint, rebuild, or gpu-all: these and
        overhead; where vLLM is installed vllm: throughput and pause of its plug-in.
    model
        A transformers checkpoint folder, or a .gguf file; the bundled SmolLM2-135M-Instruct by default.
    tensor_parallel_size
        Worker processes that share the model.
    parity
        The code that protects the KV cache.
    rounds
        Pairs of runs that the overhead is the median of; for vllm also kills of each way.
    device
        Where overhead is measured: cpu (a real engine), or cuda (one rank of a Llama with random weights); and where
        pause runs its engines.
    quick
        GPU benchmarks at small sizes: whether they run, not how fast things are. pause and vllm: only with a standby.
    shape
        pause runs a model of this shape with random weights: tiny, llama-3.2-1b, llama-3-8b.
    output
        Write the figures to this file, as JSON, after each benchmark.
    plot
        Draw the GPU benchmarks' figures into this folder.
    """
    from ghostserve.cli.bench import BenchSettings, run_bench

    return run_bench(
        which,
        BenchSettings(
            model=model,
            tensor_parallel_size=tensor_parallel_size,
            parity=parity,
            rounds=rounds,
            device=device,
            quick=quick,
            shape=shape,
            output=output,
            plot=plot,
        ),
    )


@app.command
def simulate_faults(*, seed: int | None = None, seeds: int = 1, jobs: int | None = None) -> int:
    """Run the engine under random faults on a virtual clock, and check every token that clients saw.

    Parameters
    ----------
    seed
        Replay this one and print what happened; with --seeds the first of them (0 by default).
    seeds
        How many seeds to run.
    jobs
        Processes that share them; by default one a core.
    """
    from ghostserve.cli.simulate_faults import run_simulation

    return run_simulation(seed, seeds, jobs)


@app.command
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


@app.command
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
    rounds: int = 3,
    requests: int = 80,
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
        Samples of each figure: the median counts.
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


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code. An error is one line on stderr: 2 for bad settings, else 1."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        if words[:1] == ["serve"]:
            _become_vllm(words)
        code = app(
            words,
            result_action="return_value",
            exit_on_error=False,
            print_error=False,
        )
    except (CycloptsError, ConfigError) as error:
        return _refuse(error, 2)
    except GhostServeError as error:
        return _refuse(error, 1)
    return code if isinstance(code, int) else 0


def _become_vllm(words: list[str]) -> None:
    """Does not come back if the engine is vLLM: its options are not this command line's to know."""
    from ghostserve.cli.serve_vllm import is_vllm, serve_vllm

    if is_vllm(words):
        serve_vllm(words[1:])


def _refuse(error: Exception, code: int) -> int:
    print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
    return code
