"""The schedule of an engine's life in a file, step by step, for `rerun`: what `Options(record=True)` keeps in memory.

A long life's schedule does not fit into memory, and would hide what else grows there.
"""

import os
from collections.abc import Iterator
from pathlib import Path

import msgspec

from ghostserve.engine.messages import Sampled, SequencePart, StepPlan
from ghostserve.engine.serving import LoggedStep
from ghostserve.errors import ConfigError

__all__ = ["Recorder", "read_recording"]

_MAGIC = b"ghostserve steps 1\n"
_LENGTH = 4  # bytes before each step, little-endian


class _Step(msgspec.Struct, frozen=True, array_like=True):
    step: int
    parts: tuple[SequencePart, ...]
    accepted: dict[str, Sampled]


class Recorder:
    """Appends every step that was answered to a new file, readable by this user only. `observe` is an `Observer`."""

    def __init__(self, path: Path) -> None:
        """Raises `ConfigError` if the file exists or can't be made."""
        try:
            self._file = open(path, "xb", opener=_private)  # noqa: SIM115 - closed by `close`
        except OSError as error:
            raise ConfigError(f"record {path}: {error.strerror}; name a file that does not exist yet") from error
        self._file.write(_MAGIC)
        self._encoder = msgspec.msgpack.Encoder()

    def observe(self, name: str, details: dict[str, object]) -> None:
        """Called on the coordinator's thread."""
        if name != "answered":
            return
        entry = details["entry"]
        assert isinstance(entry, LoggedStep)
        assert entry.accepted is not None
        content = self._encoder.encode(_Step(entry.plan.step, entry.plan.parts, entry.accepted))
        self._file.write(len(content).to_bytes(_LENGTH, "little") + content)

    def close(self) -> None:
        """What was not written before is lost with the process: close after the engine has stopped."""
        self._file.close()


def read_recording(path: Path) -> Iterator[LoggedStep]:
    """The steps of a closed recording, in the order in which they ran. Raises `ConfigError` if it is none, or cut."""
    decoder = msgspec.msgpack.Decoder(_Step)
    with path.open("rb") as file:
        if file.read(len(_MAGIC)) != _MAGIC:
            raise ConfigError(f"{path} is no recorded schedule")
        while head := file.read(_LENGTH):
            size = int.from_bytes(head, "little")
            content = file.read(size)
            if len(head) < _LENGTH or len(content) < size:
                raise ConfigError(f"{path} ends within a step: its writer was not closed")
            found = decoder.decode(content)
            yield LoggedStep(StepPlan(found.step, found.parts), found.accepted)


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)
