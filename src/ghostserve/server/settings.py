"""The server's own settings, apart from the address it listens on."""

from dataclasses import dataclass, fields

from ghostserve.errors import ConfigError

__all__ = ["ServerSettings"]


@dataclass(frozen=True, kw_only=True)
class ServerSettings:
    """Limits and intervals of the HTTP side; names as in uvicorn and vLLM where they have the same thing.

    Raises `ConfigError` for a value that can't be meant.

    Parameters
    ----------
    max_body_bytes
        The largest request body, in bytes; a larger one gets 413.
    max_json_depth
        How deep the JSON of a body may be nested.
    max_choices
        Prompts times n of one request.
    max_stop_strings
        Stop strings of one request.
    max_stop_length
        Characters of one stop string.
    max_stop_token_ids
        Stop token ids of one request.
    max_logprobs
        Alternatives that a request may ask for with logprobs or top_logprobs.
    recovery_patience
        Seconds that a recovery may have taken when a new request still waits for its end; later it gets 503.
    retry_after_seconds
        What Retry-After of a 429 or 503 says.
    body_timeout
        Seconds that a request's body may take to arrive; then 408.
    header_timeout
        Seconds that a request's head may take to arrive; then 408, and the connection is closed.
    send_timeout
        Seconds after which a client that takes no more of its answer is cut off.
    timeout_keep_alive
        Seconds that a connection without a request stays open.
    keep_alive_seconds
        Seconds between comments in a stream that has nothing to say.
    limit_concurrency
        Connections that are served at once; further ones get 503.
    h11_max_incomplete_event_size
        Bytes of a request's head; a larger one gets 400 or 431.
    h11_max_header_count
        Headers of a request; more get 431.
    """

    max_body_bytes: int = 8 * 1024 * 1024
    max_json_depth: int = 64
    max_choices: int = 128
    max_stop_strings: int = 4  # OpenAI's
    max_stop_length: int = 1024
    max_stop_token_ids: int = 256
    max_logprobs: int = 20
    recovery_patience: float = 60.0
    retry_after_seconds: int = 1
    body_timeout: float = 30.0
    header_timeout: float = 10.0
    send_timeout: float = 60.0
    timeout_keep_alive: int = 5
    keep_alive_seconds: float = 10.0
    limit_concurrency: int = 512
    h11_max_incomplete_event_size: int = 64 * 1024
    h11_max_header_count: int = 256

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not 0 < value < float("inf"):
                raise ConfigError(f"{field.name} is {value}: it must be greater than 0, and finite")
