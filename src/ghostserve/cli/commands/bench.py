"""`ghostserve bench`: its options."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from ghostserve.cli.commands.online import OnlineOptions
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
    online: OnlineOptions | None = None,
    contexts: Annotated[tuple[int, ...] | None, Parameter(consume_multiple=True, negative=())] = None,
    axes: Annotated[tuple[str, ...] | None, Parameter(consume_multiple=True, negative=())] = None,
    scrub_rate: Size = 16 << 20,
) -> int:
    """Measure GhostServe on this machine: every figure is a ratio from one run.

    Exits with 1 if a GPU benchmark failed; the others run, and the file has the figures that there are.

    Parameters
    ----------
    which
        codes, overhead, pause, hybrid, or all of these. strategies: every way to protect against context length;
        sensitivity: what their figures depend on; online: requests that come on their own, with failures meanwhile,
        under every strategy; paper: these three and hybrid, beside what the GhostServe paper says (with --device cuda:
        contexts and overhead).
        On a GPU kernels, checkpoint, rebuild, contexts, or gpu-all: these and overhead. Where vLLM is installed vllm:
        throughput and pause of its plug-in. scrub: an engine that scrubs against one that does not.
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
        online: three strategies and few requests.
    shape
        pause, online, strategies, sensitivity and hybrid run a model of this shape with random weights: tiny, small,
        llama-3.2-1b, llama-3-8b, llama-3-70b-rank.
    output
        Write the figures to this file, as JSON, after each benchmark.
    plot
        Draw the figures of the GPU benchmarks, online, strategies, sensitivity and hybrid into this folder.
    contexts
        strategies and hybrid: prompts of so many tokens, 256 512 1024 2048 by default; sensitivity: the longest.
    axes
        sensitivity: only these of code, ranks, sequences, flush, chunk.
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
            online=online or OnlineOptions(),
            contexts=contexts,
            axes=axes,
            scrub_rate=scrub_rate,
        ),
    )
