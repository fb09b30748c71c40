"""vLLM's engine in this very process, all ranks on one GPU, driven step by step.

    with GpuEngine(model, record) as engine:
        drawn = engine.run(requests, kills={9: 1})

GHOSTSERVE_GPU_SHARE is the part of the GPU's memory that each rank may take (default 0.3).
"""

import faulthandler
import os
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vllm.engine.arg_utils import EngineArgs
from vllm.v1.engine.llm_engine import LLMEngine
from vllm.v1.executor.abstract import Executor

from ghostserve.status import EngineStatus
from vllm import SamplingParams

__all__ = ["ENVIRONMENT", "Drawn", "GpuEngine", "eight_b", "prompts"]

ENVIRONMENT = {
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
    "VLLM_USE_V2_MODEL_RUNNER": "0",
    "VLLM_USE_FLASHINFER_SAMPLER": "0",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
}
PATIENCE = 120.0
STEP_LIMIT = 2000

Drawn = dict[str, tuple[list[int], list[dict[int, float]]]]
"""Tokens and their logprobs, by request."""


class GpuEngine:
    """TP 2 by default, bf16, eager, prompts cut into chunks of 256 tokens."""

    def __init__(
        self,
        model: Path,
        record: Path | None = None,
        *,
        ranks: int = 2,
        dummy: bool = False,
        cache_bytes: int = 256 << 20,
        asynchronous: bool = False,
        **settings: object,
    ) -> None:
        """`dummy`: the model is a configuration alone, its weights are made up; `settings`: the plug-in's."""
        own = {"parity": "rs:1", "device_of_rank": [0] * ranks, "standbys": 1} | settings
        if record is not None:
            own["record"] = str(record)
        arguments = EngineArgs(
            model=str(model),
            tensor_parallel_size=ranks,
            dtype="bfloat16",
            enforce_eager=True,
            load_format="dummy" if dummy else "auto",
            skip_tokenizer_init=dummy,
            gpu_memory_utilization=float(os.environ.get("GHOSTSERVE_GPU_SHARE", "0.3")),
            kv_cache_memory_bytes=cache_bytes,
            max_model_len=1024,
            max_num_seqs=16,
            max_num_batched_tokens=256,
            disable_log_stats=True,
            distributed_executor_backend="ghostserve.vllm.executor.GhostServeExecutor",
            worker_cls="ghostserve.vllm.worker.GhostServeWorker",
            scheduler_cls="ghostserve.vllm.scheduler.GhostServeScheduler",
            additional_config={"ghostserve": own},
        )
        config = arguments.create_engine_config()
        config.scheduler_config.async_scheduling = asynchronous
        self._engine = LLMEngine(config, Executor.get_class(config), log_stats=False, multiprocess_mode=False)
        self._core = self._engine.engine_core.engine_core

    def __enter__(self) -> "GpuEngine":
        return self

    def __exit__(self, *_: object) -> None:
        self._engine.engine_core.shutdown()

    def run(
        self, requests: Sequence[tuple[list[int], int]], kills: Mapping[int, int] | None = None, hang: float = 120.0
    ) -> Drawn:
        """All requests (prompt, new tokens) from the first step on; before step s rank `kills[s]` is killed.

        A step that takes longer than `hang` seconds: all stacks of all processes are printed, and it fails.
        """
        for number, (prompt, new) in enumerate(requests):
            params = SamplingParams(temperature=0.0, max_tokens=new, ignore_eos=True, logprobs=2)
            self._engine.add_request(f"r{number}", {"prompt_token_ids": prompt}, params)
        planned, drawn, steps = dict(kills or {}), dict[str, Any](), 0
        while self._engine.has_unfinished_requests():
            steps += 1
            assert steps < STEP_LIMIT, "this schedule does not end"
            if steps in planned:
                self.kill(planned.pop(steps))
            with _Watch(self, hang):
                for output in self._engine.step():
                    (choice,) = output.outputs
                    scored = [{i: p.logprob for i, p in step.items()} for step in choice.logprobs or ()]
                    drawn[output.request_id.split("-")[0]] = (list(choice.token_ids), scored)
        assert not planned, f"there were {steps} steps: nobody was killed in {sorted(planned)}"
        return drawn

    def kill(self, rank: int) -> None:
        """SIGKILL, with a standby there to take the place."""
        until = time.monotonic() + PATIENCE
        while not any(standby.state == "ready" for standby in self.status().standbys):
            assert time.monotonic() < until, f"no standby was ready: {self.status()}"
            time.sleep(0.01)
        os.kill(self.status().ranks[rank].pid, signal.SIGKILL)

    def status(self) -> EngineStatus:
        return self._core.model_executor._coordinator.status()

    def dump(self) -> None:
        """Every worker's and this process's stacks, on standard error."""
        status = self.status()
        print(f"HANGS: {status}", file=sys.__stderr__, flush=True)
        for pid in [rank.pid for rank in status.ranks] + [standby.pid for standby in status.standbys]:
            if pid:
                os.kill(pid, signal.SIGUSR1)
                time.sleep(0.3)
        faulthandler.dump_traceback(sys.__stderr__, all_threads=True)


class _Watch:
    """Interrupts what takes too long, after everybody's stacks are out."""

    def __init__(self, engine: GpuEngine, seconds: float) -> None:
        self._engine, self._seconds = engine, seconds

    def __enter__(self) -> None:
        signal.signal(signal.SIGALRM, self._hangs)
        signal.setitimer(signal.ITIMER_REAL, self._seconds)

    def __exit__(self, *_: object) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)

    def _hangs(self, *_: object) -> None:
        self._engine.dump()
        raise TimeoutError(f"a step took longer than {self._seconds} s")


def prompts(lengths: Sequence[int], vocabulary: int = 290) -> list[list[int]]:
    """Prompts of these lengths, all different."""
    return [[5 + (j + i * 7) % vocabulary for i in range(n)] for j, n in enumerate(lengths)]


def eight_b(folder: Path) -> Path:
    """A model of Llama-3-8B's shape, without weights."""
    from transformers import LlamaConfig

    LlamaConfig(
        architectures=["LlamaForCausalLM"],
        hidden_size=4096,
        intermediate_size=14336,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
        head_dim=128,
        vocab_size=128256,
        max_position_embeddings=8192,
        rope_theta=500000.0,
        torch_dtype="bfloat16",
    ).save_pretrained(folder)
    return folder
