"""The plug-in's settings: `--additional-config '{"ghostserve": {...}}'`, checked before anything starts."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

import msgspec

from ghostserve.codes.registry import make_code
from ghostserve.errors import ConfigError, UnsupportedCodeError

if TYPE_CHECKING:
    from vllm.config import VllmConfig

__all__ = ["SECTION", "PluginConfig", "parse_settings", "plugin_config"]

SECTION = "ghostserve"


class PluginConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What can be set; names as of the embedded engine. Raises `ConfigError` with the value and what is allowed."""

    parity: str = "rs:1"
    """The code that protects the KV cache; none = requests are recomputed from their tokens."""
    standbys: int = 1
    """Pre-imported processes that wait to take a lost rank's place."""
    flush_tokens: int = 1
    """Decode tokens of a request between two flushes to parity."""
    max_unprotected_tokens: int = 1024
    """The most tokens that may wait for their flush."""
    encoder: Literal["round_robin", "striped"] = "round_robin"
    """Who encodes a chunk: one rank, or all of them, a part each."""
    step_deadline: float = 60.0
    """Seconds after which a step without an answer counts as a hang."""
    phase_deadline: float = 120.0
    """Seconds that a phase of a recovery may take before those who have not answered count as lost."""
    max_recovery_attempts: int = 8
    """Recoveries in a row without one finished step after which the engine ends."""
    device_of_rank: tuple[int, ...] = ()
    """For tests: the GPU of each rank, several on one; by default rank r has GPU r."""
    allow_unprotected: bool = False
    """Serve what can't be protected as stock vLLM does, instead of refusing it."""
    skip_rebuild: bool = False
    """Sabotage for tests: a newcomer keeps its poisoned KV, so tokens must differ."""
    record: str | None = None
    """For tests: the file that the schedule is recorded into."""
    status_path: str | None = None
    """Where the engine's status is published; by default a file of the user's runtime folder."""

    def __post_init__(self) -> None:
        self._at_least(1, "flush_tokens", "max_unprotected_tokens", "max_recovery_attempts")
        self._at_least(0, "standbys")
        make_code(self.parity, 2)  # refuses what is no code; how many ranks there are is checked when vLLM has said it
        for name in ("step_deadline", "phase_deadline"):
            value = getattr(self, name)
            if not 0 < value < float("inf"):
                raise ConfigError(f"{name} must be a positive number of seconds, not {value}")
        for name in ("record", "status_path"):
            if getattr(self, name) == "":
                raise ConfigError(f"{name} must be a path, not ''; leave it out for none")

    def check_ranks(self, num_ranks: int) -> None:
        """Raises `UnsupportedCodeError` if `parity` can't protect that many ranks."""
        try:
            make_code(self.parity, num_ranks)
        except UnsupportedCodeError as error:
            raise UnsupportedCodeError(f"parity {self.parity!r} with {num_ranks} ranks: {error}") from None

    def devices(self, world_size: int) -> tuple[int, ...]:
        """The GPU of each rank. Raises `ConfigError` if `device_of_rank` is for another number of ranks."""
        devices = self.device_of_rank or tuple(range(world_size))
        if len(devices) != world_size or min(devices) < 0:
            raise ConfigError(f"device_of_rank must name a GPU for each of {world_size} ranks, not {list(devices)}")
        return devices

    def _at_least(self, low: int, *names: str) -> None:
        for name in names:
            value = getattr(self, name)
            if value < low:
                raise ConfigError(f"{name} must be at least {low}, not {value}")


def plugin_config(vllm_config: "VllmConfig") -> PluginConfig:
    """The settings that `vllm_config.additional_config` brings; the defaults where it has none."""
    additional = vllm_config.additional_config
    if not isinstance(additional, Mapping):
        raise ConfigError(f"additional_config must be a JSON object, not {type(additional).__name__}")
    return parse_settings(additional.get(SECTION, {}))


def parse_settings(settings: object, *, from_text: bool = False) -> PluginConfig:
    """Checks the object under "ghostserve"; `from_text`: numbers may be strings, as a command line has them."""
    if not isinstance(settings, Mapping):
        raise ConfigError(f'additional_config["{SECTION}"] must be an object of settings, not {settings!r}')
    fields = {field.name: field.type for field in msgspec.structs.fields(PluginConfig)}
    values = {}
    for name, value in settings.items():
        if name not in fields:
            raise ConfigError(f'additional_config["{SECTION}"]: {name!r} is unknown; allowed: {", ".join(fields)}')
        try:
            values[name] = msgspec.convert(value, fields[name], strict=not from_text)
        except msgspec.ValidationError:
            raise ConfigError(f"{name} must be {_words(fields[name])}, not {value!r}") from None
    return PluginConfig(**values)


def _words(kind: object) -> str:
    names = {str: "text", int: "a whole number", float: "a number", bool: "true or false"}
    if isinstance(kind, type) and kind in names:
        return names[kind]
    if kind == tuple[int, ...]:
        return "a list of whole numbers"
    return "a path" if kind == str | None else "round_robin or striped"
