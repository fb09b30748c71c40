"""`/v1/completions`: its prompts and the shape of its answers."""

import time
import uuid
from collections.abc import Iterator

from ghostserve.server.engine_client import EngineClient
from ghostserve.server.errors import ApiError
from ghostserve.server.generation import Delta
from ghostserve.server.job import Formatter, Job
from ghostserve.server.logprobs import completion_logprobs
from ghostserve.server.plan import count_samples, make_choices
from ghostserve.server.prompts import prompt_token_ids
from ghostserve.server.protocol import CompletionRequest
from ghostserve.server.responses import CompletionChoice, Envelope
from ghostserve.server.sampling import choose_max_tokens, sampling_params, stop_strings
from ghostserve.server.settings import ServerSettings
from ghostserve.server.token_text import TokenText

__all__ = ["CompletionFormatter", "completion_job"]

DEFAULT_MAX_TOKENS = 16  # OpenAI's


def completion_job(request: CompletionRequest, engine: EngineClient, settings: ServerSettings) -> Job:
    """Check everything and tokenise; takes a while for a long prompt, so it is called in a thread."""
    stop = stop_strings(request.stop, settings)
    samples = count_samples(request.n, settings.max_choices)
    prompts = prompt_token_ids(request.prompt, engine.tokenizer)
    if len(prompts) * samples > settings.max_choices:
        raise ApiError(
            f"prompt has {len(prompts)} prompts and n is {samples}: "
            f"at most {settings.max_choices} choices are allowed in a request",
            param="prompt",
        )
    params = [
        sampling_params(
            request,
            settings,
            max_tokens=choose_max_tokens(
                request.max_tokens,
                default=DEFAULT_MAX_TOKENS,
                prompt_tokens=len(prompt),
                max_model_len=engine.max_model_len,
                param="max_tokens",
                prompt_param="prompt",
            ),
            logprobs=request.logprobs,
            logprobs_param="logprobs",
            vocab_size=len(engine.tokenizer),
        )
        for prompt in prompts
    ]
    request_id = f"cmpl-{uuid.uuid4().hex}"
    return Job(
        id=request_id,
        created=int(time.time()),
        model=engine.model_name,
        choices=make_choices(request_id, prompts, params, stop, samples),
        stream=bool(request.stream),
        include_usage=bool(request.stream_options and request.stream_options.include_usage),
        return_token_ids=bool(request.return_token_ids),
        logprobs=request.logprobs is not None,
    )


class CompletionFormatter(Formatter):
    """Writes completions; whole answers and chunks have the same shape."""

    def __init__(self, job: Job, texts: TokenText) -> None:
        super().__init__(job)
        self._texts = texts
        self._opened: set[int] = set()

    def chunks(self, delta: Delta) -> Iterator[Envelope]:
        """One chunk, or none while the text is held back and no one asked for single tokens."""
        wants_tokens = self.job.logprobs or self.job.return_token_ids
        if delta.text or delta.finish_reason or wants_tokens:
            yield self.envelope([self._choice(delta)], chunk=True)

    def whole(self, deltas: list[Delta]) -> Envelope:
        """All choices at once."""
        return self.envelope([self._choice(delta) for delta in deltas], chunk=False)

    def envelope(self, choices: list[object], *, chunk: bool) -> Envelope:
        """The frame, which is the same for whole answers and chunks."""
        job = self.job
        return Envelope(id=job.id, object="text_completion", created=job.created, model=job.model, choices=choices)

    def _choice(self, delta: Delta) -> CompletionChoice:
        choice = CompletionChoice(
            index=delta.index,
            text=delta.text,
            finish_reason=delta.finish_reason,
            stop_reason=delta.stop_reason,
        )
        if self.job.logprobs:
            choice.logprobs = completion_logprobs(delta, self._texts)
        if self.job.return_token_ids:
            choice.token_ids = delta.token_ids
            if delta.index not in self._opened:
                self._opened.add(delta.index)
                choice.prompt_token_ids = self.job.choices[delta.index].prompt_token_ids
        return choice
