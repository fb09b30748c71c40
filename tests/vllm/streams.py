"""Clients that stream completions at the same time, each in a thread, and keep every token as it arrives."""

import contextlib
import random
import socket
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx
import openai
from models import VOCABULARY
from vllm_server import MODEL

__all__ = ["LENGTHS", "LONG", "Drawn", "Stream", "Streams"]

LENGTHS = (24, 40, 61, 100, 150, 230, 300, 600)
"""Of the prompts of eight clients."""
PATIENCE = 60.0
LONG = 250
"""Tokens of streams that must still run when a test gets to act, on however fast a machine."""


@dataclass(frozen=True)
class Drawn:
    """One token as it was delivered; `top`: the logprobs of the likeliest tokens, by id."""

    token: int
    logprob: float
    top: dict[int, float]


@dataclass
class Stream:
    """One client and what it has received."""

    prompt: list[int]
    wanted: dict[str, Any]
    drawn: list[Drawn] = field(default_factory=list)
    request_id: str = ""
    finish_reason: str | None = None
    error: Exception | None = None
    hung_up: bool = False
    over: bool = False
    response: Any = None

    def hang_up(self) -> None:
        """The client goes away in the middle of it."""
        self.hung_up = True
        network = self.response.response.extensions["network_stream"]
        network.get_extra_info("socket").shutdown(socket.SHUT_RDWR)


class Streams:
    """What some clients do at the same time, and waiting for it. Every second one samples, the rest are greedy."""

    def __init__(self, client: openai.OpenAI, seed: int) -> None:
        self.all: list[Stream] = []
        self._client, self._random = client, random.Random(seed)
        self._news = threading.Condition()

    def start(
        self, lengths: Sequence[int] = LENGTHS, *, tokens: int | Sequence[int] = 24, shared: int = 0, **params: object
    ) -> list[Stream]:
        """A client for each prompt length. The first `shared` tokens of the prompts are the same."""
        prefix = self._tokens(shared)
        return self.send([(prefix + self._tokens(length))[:length] for length in lengths], tokens=tokens, **params)

    def send(self, prompts: Sequence[list[int]], *, tokens: int | Sequence[int] = 24, **params: object) -> list[Stream]:
        """A client for each of these prompts."""
        counts = [tokens] * len(prompts) if isinstance(tokens, int) else tokens
        fresh = []
        for index, (prompt, count) in enumerate(zip(prompts, counts, strict=True)):
            sampled = {"temperature": 0.8, "top_p": 0.9} if index % 2 else {"temperature": 0.0}
            fresh.append(Stream(prompt, {"max_tokens": count, "logprobs": 2} | sampled | params))
        self.all += fresh
        for stream in fresh:
            thread = threading.Thread(target=self._run, args=(stream,), daemon=True)
            thread.start()
        return fresh

    # ---- waiting

    def when(self, moment: Callable[[], object], complaint: str) -> None:
        """Wait for a moment of these streams; one that fails is not waited for."""
        with self._news:
            came = self._news.wait_for(lambda: moment() or any(stream.error for stream in self.all), PATIENCE)
            self._raise_errors()
            assert came, f"{complaint}: {[len(stream.drawn) for stream in self.all]}"

    def when_all_have(self, count: int) -> None:
        self.when(lambda: all(len(s.drawn) >= count for s in self.all), f"not everybody got {count} tokens")

    def when_only_some_have_begun(self) -> None:
        """One client has its first token, and the prompt of another is still being read."""
        self.when(lambda: any(s.drawn for s in self.all), "nobody got a token")
        assert not all(s.drawn for s in self.all), "all prompts are read: the moment is over"

    def when_one_is_over(self) -> None:
        self.when(lambda: any(s.over for s in self.all), "nobody came to an end")
        assert not all(s.over for s in self.all), "all streams are over: the moment is over"

    def finish(self) -> None:
        """Every client has all that it asked for."""
        self.when(lambda: all(s.over for s in self.all), "not every stream ended")
        for stream in (s for s in self.all if not s.hung_up):
            assert (len(stream.drawn), stream.finish_reason) == (stream.wanted["max_tokens"], "length")

    @property
    def num_tokens(self) -> int:
        return sum(len(stream.drawn) for stream in self.all)

    # ---- inside

    def _tokens(self, count: int) -> list[int]:
        return [self._random.randrange(2, VOCABULARY) for _ in range(count)]

    def _run(self, stream: Stream) -> None:
        own = {"ignore_eos": True, "return_token_ids": True, "return_tokens_as_token_ids": True}
        try:
            stream.response = self._client.completions.create(
                model=MODEL, prompt=stream.prompt, stream=True, extra_body=own, **stream.wanted
            )
            with contextlib.closing(stream.response):
                for chunk in stream.response:
                    self._take(stream, chunk)
        except (httpx.TransportError, openai.APIError, OSError) as error:
            if not stream.hung_up:
                stream.error = error
        except Exception as error:  # noqa: BLE001 - the test's own mistake: tell it there, not on this thread
            stream.error = error
        with self._news:
            stream.over = True
            self._news.notify_all()

    def _take(self, stream: Stream, chunk: Any) -> None:
        fresh = []
        for choice in chunk.choices:
            ids, logprobs = choice.token_ids, choice.logprobs
            for token, logprob, top in zip(ids, logprobs.token_logprobs, logprobs.top_logprobs, strict=True):
                fresh.append(Drawn(token, logprob, {_number(name): value for name, value in top.items()}))
        with self._news:
            stream.request_id = chunk.id
            stream.drawn += fresh
            stream.finish_reason = chunk.choices[0].finish_reason if chunk.choices else stream.finish_reason
            self._news.notify_all()

    def _raise_errors(self) -> None:
        for stream in self.all:
            if stream.error is not None:
                raise AssertionError(f"{stream.request_id or 'a request'} failed: {stream.error!r}") from stream.error


def _number(name: str) -> int:
    """A token's id from "token_id:7"."""
    return int(name.removeprefix("token_id:"))
