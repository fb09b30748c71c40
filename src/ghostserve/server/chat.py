"""`/v1/chat/completions`: its messages and the shape of its answers."""

import time
import uuid
from collections.abc import Iterator

from ghostserve.server.chat_template import chat_token_ids
from ghostserve.server.engine_client import EngineClient
from ghostserve.server.errors import ApiError
from ghostserve.server.generation import Delta
from ghostserve.server.job import Formatter, Job
from ghostserve.server.logprobs import chat_logprobs
from ghostserve.server.plan import count_samples, make_choices
from ghostserve.server.protocol import ChatCompletionRequest
from ghostserve.server.responses import ChatChoice, ChatMessageDelta, ChunkChoice, Envelope
from ghostserve.server.sampling import choose_max_tokens, sampling_params, stop_strings
from ghostserve.server.settings import ServerSettings
from ghostserve.server.token_text import TokenText

__all__ = ["ChatFormatter", "chat_job"]


def chat_job(request: ChatCompletionRequest, engine: EngineClient, settings: ServerSettings) -> Job:
    """Check everything and tokenise; takes a while for a long conversation, so it is called in a thread."""
    stop = stop_strings(request.stop, settings)
    samples = count_samples(request.n, settings.max_choices)
    logprobs = _logprobs(request)
    prompt = chat_token_ids(request.messages, engine.tokenizer)
    newer = request.max_completion_tokens is not None
    max_tokens = choose_max_tokens(
        request.max_completion_tokens if newer else request.max_tokens,
        default=None,
        prompt_tokens=len(prompt),
        max_model_len=engine.max_model_len,
        param="max_completion_tokens" if newer else "max_tokens",
        prompt_param="messages",
    )
    params = sampling_params(
        request,
        settings,
        max_tokens=max_tokens,
        logprobs=logprobs,
        logprobs_param="top_logprobs",
        vocab_size=len(engine.tokenizer),
    )
    request_id = f"chatcmpl-{uuid.uuid4().hex}"
    return Job(
        id=request_id,
        created=int(time.time()),
        model=engine.model_name,
        choices=make_choices(request_id, [prompt], [params], stop, samples),
        stream=bool(request.stream),
        include_usage=bool(request.stream_options and request.stream_options.include_usage),
        return_token_ids=bool(request.return_token_ids),
        logprobs=logprobs is not None,
    )


def _logprobs(request: ChatCompletionRequest) -> int | None:
    if request.logprobs:
        return request.top_logprobs or 0
    if request.top_logprobs:
        raise ApiError(
            f"top_logprobs is {request.top_logprobs}: it is allowed only when logprobs is true",
            param="top_logprobs",
        )
    return None


class ChatFormatter(Formatter):
    """Writes chat messages and their chunks."""

    def __init__(self, job: Job, texts: TokenText) -> None:
        super().__init__(job)
        self._texts = texts
        self._opened: set[int] = set()

    def chunks(self, delta: Delta) -> Iterator[Envelope]:
        """A chunk with the role opens a choice; then one for every text, or every token where asked."""
        if delta.index not in self._opened:
            self._opened.add(delta.index)
            opening = ChunkChoice(index=delta.index, delta=ChatMessageDelta(role="assistant", content=""))
            chunk = self.envelope([opening], chunk=True)
            self._add_prompt(chunk)
            yield chunk
        wants_tokens = self.job.logprobs or self.job.return_token_ids
        if delta.text or delta.finish_reason or wants_tokens:
            choice = ChunkChoice(index=delta.index, delta=ChatMessageDelta(content=delta.text))
            yield self.envelope([self._filled(choice, delta)], chunk=True)

    def whole(self, deltas: list[Delta]) -> Envelope:
        """All choices at once."""
        choices: list[object] = [
            self._filled(
                ChatChoice(index=delta.index, message=ChatMessageDelta(role="assistant", content=delta.text)),
                delta,
            )
            for delta in deltas
        ]
        answer = self.envelope(choices, chunk=False)
        self._add_prompt(answer)
        return answer

    def envelope(self, choices: list[object], *, chunk: bool) -> Envelope:
        """The frame, which says whether it is a chunk."""
        job = self.job
        kind = "chat.completion.chunk" if chunk else "chat.completion"
        return Envelope(id=job.id, object=kind, created=job.created, model=job.model, choices=choices)

    def _add_prompt(self, answer: Envelope) -> None:
        if self.job.return_token_ids:
            answer.prompt_token_ids = self.job.choices[0].prompt_token_ids

    def _filled(self, choice: ChatChoice | ChunkChoice, delta: Delta) -> ChatChoice | ChunkChoice:
        choice.finish_reason = delta.finish_reason
        choice.stop_reason = delta.stop_reason
        if self.job.logprobs:
            choice.logprobs = chat_logprobs(delta, self._texts)
        if self.job.return_token_ids:
            choice.token_ids = delta.token_ids
        return choice
