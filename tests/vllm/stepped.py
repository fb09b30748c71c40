"""vLLM's engine in this very process, driven step by step: a rank is killed before a step of the test's choice.

engine = SteppedEngine(model, folder, asynchronous=True)
engine.add(prompt, max_tokens=20)
engine.run(kills={9: 0})
"""

import os
import signal
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from vllm.engine.arg_utils import EngineArgs
from vllm.v1.engine.llm_engine import LLMEngine
from vllm.v1.executor.abstract import Executor
from vllm_server import VLLM_ENVIRONMENT

from ghostserve.status import EngineStatus
from ghostserve.vllm.executor import GhostServeExecutor
from ghostserve.vllm.record import Step, read
from vllm import RequestOutput, SamplingParams

__all__ = ["Moment", "SteppedEngine"]

PATIENCE = 60.0
STEP_LIMIT = 2000

Moment = Callable[["SteppedEngine"], object]
"""Says before each step whether it is time to kill."""


class SteppedEngine:
    """TP 2, bf16, with prompts cut into chunks of 256 tokens."""

    def __init__(
        self, model: Path, folder: Path, *, asynchronous: bool, num_blocks: int | None = None, **settings: object
    ) -> None:
        assert all(os.environ.get(name) == value for name, value in VLLM_ENVIRONMENT.items())
        self.record = folder / "schedule"
        arguments = EngineArgs(
            model=str(model),
            tensor_parallel_size=2,
            dtype="bfloat16",
            enforce_eager=True,
            block_size=32,
            kv_cache_memory_bytes=64 << 20,
            num_gpu_blocks_override=num_blocks,
            max_model_len=1024,
            max_num_batched_tokens=256,
            disable_log_stats=True,
            distributed_executor_backend="ghostserve.vllm.executor.GhostServeExecutor",
            worker_cls="ghostserve.vllm.worker.GhostServeWorker",
            scheduler_cls="ghostserve.vllm.scheduler.GhostServeScheduler",
            additional_config={"ghostserve": {"parity": "rs:1", "record": str(self.record), **settings}},
        )
        config = arguments.create_engine_config()
        config.scheduler_config.async_scheduling = asynchronous  # vLLM's platform for the CPU switches it off
        self._engine = LLMEngine(config, Executor.get_class(config), log_stats=False, multiprocess_mode=False)
        self._core = self._engine.engine_core.engine_core
        self._requests = 0
        self.outputs: dict[str, RequestOutput] = {}

    # ---- driving

    def add(self, prompt: list[int], **params: Any) -> str:
        """A request; greedy and with logprobs if nothing else is said."""
        self._requests += 1
        name = f"r{self._requests}"
        wanted = {"temperature": 0.0, "max_tokens": 24, "ignore_eos": True, "logprobs": 2} | params
        self._engine.add_request(name, {"prompt_token_ids": prompt}, SamplingParams(**wanted))
        return name

    def abort(self, *names: str) -> None:
        self._engine.abort_request(list(names))

    def step(self) -> None:
        for output in self._engine.step():
            self.outputs[output.request_id] = output

    def run(self, kills: Mapping[int, int] | None = None, *, when: list[tuple[Moment, int]] | None = None) -> int:
        """Until no request is left. `kills`: {step: rank}; `when`: [(moment, rank)], one after the other.

        Returns how many steps it took; every kill must have had its step.
        """
        planned, waiting, steps = dict(kills or {}), list(when or ()), 0
        while self._engine.has_unfinished_requests():
            steps += 1
            assert steps < STEP_LIMIT, "this schedule does not end"
            if steps in planned:
                self.kill(planned.pop(steps))
            if waiting and waiting[0][0](self):
                self.kill(waiting.pop(0)[1])
            self.step()
        while self._core.batch_queue:  # asynchronous: a step is under way that nobody needs any more
            self.step()
        assert not planned, f"there were {steps} steps: nobody was killed in {sorted(planned)}"
        assert not waiting, f"{len(waiting)} kills never had their moment"
        return steps

    def kill(self, rank: int) -> None:
        """SIGKILL, with a standby there to take the place."""
        self._until(lambda: any(standby.state == "ready" for standby in self.status().standbys), "no standby was ready")
        os.kill(self.status().ranks[rank].pid, signal.SIGKILL)

    def forget_prefixes(self) -> None:
        """Nothing that was computed so far is used again."""
        assert self._engine.reset_prefix_cache()

    # ---- looking

    @property
    def executor(self) -> GhostServeExecutor:
        return self._core.model_executor

    def status(self) -> EngineStatus:
        return self.executor._coordinator.status()

    def steps(self) -> list[Step]:
        """What is recorded so far."""
        return read(self.record) if self.record.exists() else []

    def num_preempted(self) -> int:
        """How many requests are waiting that ran before."""
        return sum(request.num_preemptions > 0 for request in self._core.scheduler.waiting)

    def drawn(self, name: str) -> tuple[list[int], list[dict[int, float]]]:
        """Tokens, and their logprobs by id."""
        (choice,) = self.outputs[name].outputs
        return list(choice.token_ids), [{i: p.logprob for i, p in step.items()} for step in choice.logprobs or ()]

    def encode(self, text: str) -> list[int]:
        return list(self._engine.get_tokenizer().encode(text))

    def text(self, name: str) -> str:
        return self.outputs[name].outputs[0].text

    def prompt_logprobs(self, name: str) -> list[dict[int, float] | None]:
        """The logprobs of the prompt's own tokens, and of the likeliest ones."""
        scored = self.outputs[name].prompt_logprobs
        assert scored is not None
        return [step and {i: p.logprob for i, p in step.items()} for step in scored]

    def close(self) -> None:
        self._engine.engine_core.shutdown()

    # ---- inside

    def _until(self, condition: Callable[[], object], complaint: str) -> None:
        deadline = time.monotonic() + PATIENCE
        while not condition():
            assert time.monotonic() < deadline, f"{complaint}: {self.status()}"
            time.sleep(0.01)
