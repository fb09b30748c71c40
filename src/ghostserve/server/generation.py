"""One choice of a request: from prompt tokens to pieces of text."""

from collections.abc import AsyncGenerator
from typing import Any

import msgspec

from ghostserve.errors import GhostServeError
from ghostserve.sampling import SamplingParams, TokenOutput
from ghostserve.server.detokenizer import Detokenizer
from ghostserve.server.engine_client import EngineClient
from ghostserve.server.metrics import RequestMetrics
from ghostserve.server.stop import StopBuffer
from ghostserve.server.streams import closing

__all__ = ["ChoiceSpec", "ChoiceText", "Delta", "run_choice"]


class ChoiceSpec(msgspec.Struct, frozen=True, kw_only=True):
    """What to generate for one choice."""

    index: int
    request_id: str
    prompt_token_ids: list[int]
    params: SamplingParams
    stop: tuple[str, ...] = ()
    counts_prompt: bool = True  # False for the further samples of a prompt, so that its tokens count once


class Delta(msgspec.Struct, kw_only=True):
    """What one or more tokens add to a choice. `offsets` are the tokens' places in the text."""

    index: int
    text: str = ""
    tokens: list[TokenOutput] = msgspec.field(default_factory=list)
    offsets: list[int] = msgspec.field(default_factory=list)
    finish_reason: str | None = None
    stop_reason: str | int | None = None

    def extend(self, later: "Delta") -> None:
        """Append what came later."""
        self.text += later.text
        self.tokens += later.tokens
        self.offsets += later.offsets
        self.finish_reason = later.finish_reason
        self.stop_reason = later.stop_reason

    @property
    def token_ids(self) -> list[int]:
        """The ids of all tokens, also of those whose text is held back or cut off."""
        return [token.token_id for token in self.tokens]


class ChoiceText:
    """Joins detokenising and stop strings: tokens in, deltas out."""

    def __init__(self, tokenizer: Any, spec: ChoiceSpec) -> None:
        self._detokenizer = Detokenizer(tokenizer, spec.prompt_token_ids)
        self._stops = StopBuffer(spec.stop)
        self._spec = spec
        self._characters = 0

    def push(self, output: TokenOutput) -> Delta:
        """The text that is settled by this token, and whether the choice ends here."""
        delta = Delta(index=self._spec.index, tokens=[output], offsets=[self._characters])
        # A token that stops the sequence is not part of its text, special or not.
        text = "" if output.finish_reason == "stop" else self._detokenizer.push(output.token_id)
        if output.finish_reason is not None:
            text += self._detokenizer.flush()
        self._characters += len(text)
        delta.text, stop = self._stops.push(text)
        if stop is not None:
            delta.finish_reason, delta.stop_reason = "stop", stop
        elif output.finish_reason is not None:
            delta.text += self._stops.flush()
            delta.finish_reason = output.finish_reason
            if output.finish_reason == "stop" and output.token_id in self._spec.params.stop_token_ids:
                delta.stop_reason = output.token_id
        return delta


async def run_choice(engine: EngineClient, spec: ChoiceSpec, metrics: RequestMetrics) -> AsyncGenerator[Delta, None]:
    """Yield one delta a token; the last has a finish reason. Closing this closes the engine's generator."""
    text = ChoiceText(engine.tokenizer, spec)
    with metrics.track(len(spec.prompt_token_ids) if spec.counts_prompt else 0) as tracked:
        last: Delta | None = None
        # Left before the last delta goes out: a stop string ends the request in the engine at once.
        async with closing(engine.generate(spec.request_id, spec.prompt_token_ids, spec.params)) as outputs:
            async for output in outputs:
                tracked.token()
                delta = text.push(output)
                if delta.finish_reason is not None:
                    last = delta
                    break
                yield delta
        if last is None:
            raise GhostServeError(f"the engine ended request {spec.request_id} without a finish reason")
        tracked.finish(last.finish_reason or "stop")
        yield last
