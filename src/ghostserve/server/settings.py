"""The server's own settings, apart from the address it listens on."""

import msgspec

from ghostserve.errors import ConfigError

__all__ = ["ServerSettings"]


class ServerSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Limits and intervals of the HTTP side."""

    max_body_bytes: int = 8 * 1024 * 1024
    max_choices: int = 128  # prompts times `n` of one request
    keep_alive_seconds: float = 10.0  # between SSE comments while a stream has nothing to say
    retry_after_seconds: int = 1  # what a 503 tells the client to wait

    def __post_init__(self) -> None:
        for name in self.__struct_fields__:
            value = getattr(self, name)
            if not value > 0:
                raise ConfigError(f"{name} is {value}: it must be greater than 0")
