"""One vLLM engine in a process of its own, with vLLM's usual processes below it: it does the work that it is sent.

Imports little: how long a restart takes is measured with it.
"""

import asyncio
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from ghostserve.bench.vllm.work import EngineSettings, Outcome, Rerun, Stream, Work

__all__ = ["rerun_schedule", "serve"]

ENVIRONMENT = {
    "VLLM_USE_V2_MODEL_RUNNER": "0",  # the runner that the plug-in works with, for both sides
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # a rank a core would need as many cores as there are ranks
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "OMP_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
}
CLASSES = {
    "distributed_executor_backend": "ghostserve.vllm.executor.GhostServeExecutor",
    "worker_cls": "ghostserve.vllm.worker.GhostServeWorker",
    "scheduler_cls": "ghostserve.vllm.scheduler.GhostServeScheduler",
}


def serve(connection: Connection, settings: EngineSettings, log: Path) -> None:
    """The process's entry point: says "ready", then answers `(work, seed)` with an `Outcome` until it gets None."""
    _become_session(log)
    with _errors_sent(connection):
        asyncio.run(_serve(connection, settings))


def rerun_schedule(connection: Connection, record: Path, log: Path) -> None:
    """Another entry point: run the recorded schedule on undisturbed workers and answer with a `Rerun`."""
    _become_session(log)
    with _errors_sent(connection):
        from ghostserve.vllm.rerun import rerun

        report = rerun(record)
        connection.send(Rerun(report.tokens, [f"{d.request_id}, step {d.step}: {d.what}" for d in report.differences]))


def _become_session(log: Path) -> None:
    """A session of its own, so that its processes can be found; what they print goes to `log`."""
    os.setsid()
    os.environ.update(ENVIRONMENT, TMPDIR=str(log.parent))  # vLLM leaves files behind when it is killed
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(file, sys.stdout.fileno())
    os.dup2(file, sys.stderr.fileno())


@contextmanager
def _errors_sent(connection: Connection) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        connection.send(error if _is_plain(error) else RuntimeError(f"{type(error).__name__}: {error}"))
        raise


def _is_plain(error: Exception) -> bool:
    return type(error) in (RuntimeError, ValueError, OSError)


async def _serve(connection: Connection, settings: EngineSettings) -> None:
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.v1.engine.async_llm import AsyncLLM

    own: dict[str, Any] = {"distributed_executor_backend": "mp", "worker_cls": settings.worker}
    if settings.plugin is not None:
        own = {**CLASSES, "additional_config": {"ghostserve": settings.plugin}}
    arguments = AsyncEngineArgs(
        model=settings.model,
        tensor_parallel_size=settings.tensor_parallel_size,
        dtype=settings.dtype,
        max_model_len=settings.max_model_len,
        max_num_batched_tokens=settings.batch_tokens,
        kv_cache_memory_bytes=settings.kv_cache_bytes,
        block_size=32,
        enforce_eager=True,
        skip_tokenizer_init=True,
        **own,
    )
    engine = AsyncLLM.from_engine_args(arguments)
    try:
        connection.send("ready")
        while (command := await asyncio.to_thread(connection.recv)) is not None:
            connection.send(await _Run(engine, *command).outcome())
    finally:
        engine.shutdown()


class _Run:
    """One `Work` on an engine."""

    def __init__(self, engine: Any, work: Work, seed: int) -> None:
        self._engine, self._work, self._seed = engine, work, seed
        self._outcome = Outcome([Stream() for _ in range(work.streams)], 0.0)
        self._victim = 0
        if work.kill_at is not None:
            rank = engine.vllm_config.parallel_config.tensor_parallel_size - 1
            self._victim = _worker(rank)

    async def outcome(self) -> Outcome:
        from vllm.v1.engine.exceptions import EngineDeadError

        found = self._outcome
        # Held back until all are there: every run of the same work has the same schedule.
        await self._engine.pause_generation(mode="keep", clear_cache=True)
        answers = [await self._add(number, prompt) for number, prompt in enumerate(self._prompts())]
        found.began = time.monotonic()
        await self._engine.resume_generation()
        try:
            await asyncio.gather(*(self._read(*pair) for pair in zip(found.streams, answers, strict=True)))
        except EngineDeadError:
            if not found.killed:
                raise
            found.died = True
        return found

    def _prompts(self) -> list[list[int]]:
        return self._work.prompts(self._engine.model_config.get_vocab_size(), self._seed)

    async def _add(self, number: int, prompt: list[int]) -> Any:
        from vllm.sampling_params import RequestOutputKind

        from vllm import SamplingParams

        params = SamplingParams(
            temperature=0.0,
            max_tokens=self._work.tokens,
            ignore_eos=True,
            detokenize=False,
            output_kind=RequestOutputKind.DELTA,
        )
        name = f"{self._work.name}-{self._seed}-{number}"
        return await self._engine.add_request(name, {"prompt_token_ids": prompt}, params)

    async def _read(self, stream: Stream, answers: Any) -> None:
        finished = False
        while not finished:
            answer = answers.get_nowait() or await answers.get()
            tokens = list(answer.outputs[0].token_ids)
            stream.tokens += tokens
            stream.times += [time.monotonic()] * len(tokens)
            finished = answer.finished
            self._maybe_kill()

    def _maybe_kill(self) -> None:
        found, at = self._outcome, self._work.kill_at
        if at is None or found.killed or min(len(stream.tokens) for stream in found.streams) < at:
            return
        found.killed = time.monotonic()
        found.counts = [len(stream.tokens) for stream in found.streams]
        os.kill(self._victim, signal.SIGKILL)


def _worker(rank: int) -> int:
    """The process id of this session's worker `rank`; vLLM names its processes, with the plug-in and without."""
    name = f"Worker_TP{rank}"
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if os.getsid(int(folder.name)) == os.getpid() and name in (folder / "cmdline").read_text():
                return int(folder.name)
        except OSError:  # it has ended meanwhile
            continue
    raise RuntimeError(f"no process of this engine is called {name}")
