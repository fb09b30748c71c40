"""The embedded engine as its users see it: an asyncio client around the coordinator's thread."""

import asyncio
import logging
import random
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import msgspec

from ghostserve.engine.config import EngineConfig
from ghostserve.engine.coordinator import Coordinator, Options
from ghostserve.engine.dryrun import check_forward
from ghostserve.engine.files import load_tokenizer, resolve_checkpoint
from ghostserve.engine.modelspec import inspect_checkpoint
from ghostserve.engine.placement import place
from ghostserve.engine.scheduler import Request
from ghostserve.errors import GhostServeError, RequestError
from ghostserve.sampling import SamplingParams, TokenOutput
from ghostserve.status import EngineStatus

__all__ = ["Engine"]

log = logging.getLogger("ghostserve.engine")

_START_SECONDS = 600.0


class Engine:
    """Serves one checkpoint on `tensor_parallel_size` worker processes. A context manager.

        with Engine(EngineConfig(model="checkpoint", tensor_parallel_size=3)) as engine:
            async for output in engine.generate("r1", token_ids, SamplingParams(max_tokens=20)):
                ...

    Raises `ConfigError` and its kin, before anything is started, for what can't be served.
    """

    def __init__(self, config: EngineConfig, *, model_name: str | None = None, options: Options | None = None) -> None:
        folder = resolve_checkpoint(config.model)
        config = msgspec.structs.replace(config, model=str(folder))
        self.spec = inspect_checkpoint(config)
        check_forward(self.spec)
        self.tokenizer: Any = load_tokenizer(folder)
        self.model_name = model_name or Path(folder).name
        self.max_model_len = self.spec.max_model_len
        self.max_sequences = config.max_num_seqs + config.max_queue
        self.eos_token_ids = frozenset(self.spec.eos_token_ids)
        self._random = random.Random(config.seed)
        self.placement = place(config, self.spec)
        for reason in self.placement.reasons:
            log.info("device %s: %s", self.placement.device, reason)
        self.coordinator = Coordinator(config, self.spec, options, self.placement)

    def start(self) -> "Engine":
        """Start the workers and wait until they serve. Raises `GhostServeError` if they don't."""
        self.coordinator.start()
        try:
            self.coordinator.wait_started(_START_SECONDS)
        except GhostServeError:
            self.stop()
            raise
        return self

    def stop(self) -> None:
        """End everything that `start` began. Idempotent."""
        self.coordinator.stop()

    def __enter__(self) -> "Engine":
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def make_request(self, request_id: str, prompt_token_ids: Sequence[int], params: SamplingParams) -> Request:
        """Check a request against the model. Raises `RequestError`."""
        prompt = tuple(prompt_token_ids)
        if not prompt:
            raise RequestError("the prompt is empty", param="prompt")
        if not all(0 <= token < self.spec.vocab_size for token in prompt):
            raise RequestError(f"token ids must be in 0..{self.spec.vocab_size - 1}", param="prompt")
        if params.max_tokens < 1:
            raise RequestError(f"max_tokens must be at least 1, not {params.max_tokens}", param="max_tokens")
        if not 0 <= params.temperature < float("inf"):
            raise RequestError(f"temperature must be 0 or more, not {params.temperature}", param="temperature")
        if not 0 < params.top_p <= 1:
            raise RequestError(f"top_p must be in (0, 1], not {params.top_p}", param="top_p")
        if params.logprobs is not None and not 0 <= params.logprobs <= self.spec.vocab_size:
            raise RequestError(
                f"logprobs must be in 0..{self.spec.vocab_size}, not {params.logprobs}", param="logprobs"
            )
        if len(prompt) + params.max_tokens > self.max_model_len:
            raise RequestError(
                f"{len(prompt)} prompt tokens and max_tokens {params.max_tokens} exceed the context of"
                f" {self.max_model_len} tokens",
                param="max_tokens",
            )
        # A seed is always there: a replay must draw what the first run drew.
        seed = params.seed if params.seed is not None else self._random.getrandbits(63)
        return Request(request_id, prompt, params, seed, self.eos_token_ids)

    async def generate(
        self, request_id: str, prompt_token_ids: Sequence[int], params: SamplingParams
    ) -> AsyncIterator[TokenOutput]:
        """Tokens as they are drawn. Closing the generator aborts the request."""
        request = self.make_request(request_id, prompt_token_ids, params)
        loop = asyncio.get_running_loop()
        outputs: asyncio.Queue[TokenOutput | GhostServeError] = asyncio.Queue()

        def sink(item: TokenOutput | GhostServeError) -> None:
            loop.call_soon_threadsafe(outputs.put_nowait, item)

        self.coordinator.submit(request, sink)
        finished = False
        try:
            while not finished:
                item = await outputs.get()
                if isinstance(item, GhostServeError):
                    finished = True
                    raise item
                finished = item.finish_reason is not None
                yield item
        finally:
            if not finished:
                self.coordinator.abort(request_id)

    def status(self) -> EngineStatus:
        return self.coordinator.status()

    async def check_health(self) -> None:
        """Raise `GhostServeError` when the engine is dead for good."""
        failure = self.coordinator.failure
        if failure is not None:
            raise failure
