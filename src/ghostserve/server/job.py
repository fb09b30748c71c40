"""A checked request, ready to run, and the two ways of answering it: at once or as a stream."""

from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from ghostserve.server.admission import Admission
from ghostserve.server.engine_client import EngineClient
from ghostserve.server.generation import ChoiceSpec, Delta, run_choice
from ghostserve.server.metrics import RequestMetrics
from ghostserve.server.responses import Envelope, Usage
from ghostserve.server.settings import ServerSettings
from ghostserve.server.sse import DONE, KEEP_ALIVE, EventStream, event
from ghostserve.server.streams import merge, unless_disconnected

__all__ = ["Formatter", "Job", "JobRunner"]


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """What both endpoints know of a request once it is checked."""

    id: str
    created: int
    model: str
    choices: list[ChoiceSpec]
    stream: bool
    include_usage: bool
    return_token_ids: bool
    logprobs: bool

    def usage(self, completion_tokens: int) -> Usage:
        """The request's usage after so many generated tokens."""
        prompt = sum(len(spec.prompt_token_ids) for spec in self.choices if spec.counts_prompt)
        return Usage(
            prompt_tokens=prompt,
            completion_tokens=completion_tokens,
            total_tokens=prompt + completion_tokens,
        )


class Formatter(ABC):
    """How an endpoint writes its answers. It serves one request and may remember what it has sent."""

    def __init__(self, job: Job) -> None:
        self.job = job

    @abstractmethod
    def chunks(self, delta: Delta) -> Iterator[Envelope]:
        """The chunks of a stream that `delta` makes: none, one or two."""

    @abstractmethod
    def whole(self, deltas: list[Delta]) -> Envelope:
        """The answer at once, from one joined delta a choice."""

    @abstractmethod
    def envelope(self, choices: list[object], *, chunk: bool) -> Envelope:
        """The frame around choices."""


class JobRunner:
    """Runs jobs on the engine and answers them."""

    def __init__(self, engine: EngineClient, settings: ServerSettings, metrics: RequestMetrics) -> None:
        self._engine = engine
        self._settings = settings
        self._metrics = metrics
        self.admission = Admission(engine, settings)

    async def respond(self, request: Request, formatter: Formatter) -> Response:
        """The response; what the door or the engine refuses at once is raised, so that it becomes an HTTP error."""
        ticket = self.admission.admit(len(formatter.job.choices))
        if not formatter.job.stream:
            try:
                answer = await unless_disconnected(request.receive, self._whole(formatter))
            finally:
                ticket.release()
            return Response(msgspec.json.encode(answer), media_type="application/json")
        chunks = self._stream(formatter)
        try:
            # Waiting for the first chunk (a keep-alive at the latest) lets a refusal have its status code.
            first = await unless_disconnected(request.receive, _first(chunks))
        except BaseException:
            await chunks.aclose()
            ticket.release()
            raise
        return EventStream(first, chunks, ticket.release)

    async def _whole(self, formatter: Formatter) -> Envelope:
        joined = {spec.index: Delta(index=spec.index) for spec in formatter.job.choices}
        async with aclosing(self._deltas(formatter.job, None)) as deltas:
            async for delta in deltas:
                if delta is not None:
                    joined[delta.index].extend(delta)
        answer = formatter.whole(list(joined.values()))
        answer.usage = formatter.job.usage(sum(len(delta.tokens) for delta in joined.values()))
        return answer

    async def _stream(self, formatter: Formatter) -> AsyncGenerator[bytes, None]:
        job = formatter.job
        tokens = 0
        async with aclosing(self._deltas(job, self._settings.keep_alive_seconds)) as deltas:
            async for delta in deltas:
                if delta is None:
                    yield KEEP_ALIVE
                    continue
                tokens += len(delta.tokens)
                for chunk in formatter.chunks(delta):
                    if job.include_usage:
                        chunk.usage = None  # OpenAI: null in every chunk but the last
                    yield event(chunk)
        if job.include_usage:
            last = formatter.envelope([], chunk=True)
            last.usage = job.usage(tokens)
            yield event(last)
        yield DONE

    def _deltas(self, job: Job, idle_seconds: float | None) -> AsyncGenerator[Delta | None, None]:
        return merge([run_choice(self._engine, spec, self._metrics) for spec in job.choices], idle_seconds)


async def _first(chunks: AsyncGenerator[bytes, None]) -> bytes:
    return await anext(chunks)
