"""`ghostserve bench`: its options."""

from pathlib import Path

from ghostserve.cli.options import Ranks, Size

__all__ = ["bench"]


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
    scrub_rate: Size = 16 << 20,
) -> int:
    """Measure GhostServe on this machine: every figure is a ratio from one run.

    Exits with 1 if a GPU benchmark failed; the others run, and the file has the figures that there are.

    Parameters
    ----------
    which
        codes, overhead, pause, hybrid, or all of these; on a GPU kernels, checkpoint, rebuild, or gpu-all: these and
        overhead; where vLLM is installed vllm: throughput and pause of its plug-in. scrub: an engine that scrubs
        against one that does not.
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
    scrub_rate
        Bytes a second that the benchmark scrub verifies, such as 16M.
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
            scrub_rate=scrub_rate,
        ),
    )
