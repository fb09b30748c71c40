"""The schedule of an engine's life, written down step by step: what was sent and what was answered.

For tests and for whoever looks into an incident: `rerun` runs the same schedule on fresh workers, undisturbed, and the
answers must be the same. The file holds pickles, vLLM's own objects: read only what you have recorded yourself.
"""

import os
import pickle
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ghostserve.errors import ConfigError

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.v1.core.sched.output import GrammarOutput, SchedulerOutput
    from vllm.v1.outputs import ModelRunnerOutput

__all__ = ["Recorder", "Setup", "Step", "read", "read_setup"]

_MAGIC = b"ghostserve schedule 1\n"


@dataclass(frozen=True)
class Setup:
    """What the workers were made with; `calls`: those of vLLM's that shaped them, in order."""

    config: "VllmConfig"
    calls: list[tuple[str, tuple[Any, ...]]]


@dataclass(frozen=True)
class Step:
    """A step that counted. `output` None: it never came to an answer, all KV was given up."""

    scheduled: "SchedulerOutput"
    grammar: "GrammarOutput | None"
    output: "ModelRunnerOutput | None"


class Recorder:
    """Appends to a new file, readable by this user only."""

    def __init__(self, path: Path, setup: Setup) -> None:
        """Raises `ConfigError` if the file exists or can't be made."""
        try:
            self._file = open(path, "xb", opener=_private)  # noqa: SIM115 - closed by `close`
        except OSError as error:
            raise ConfigError(f"record {path}: {error.strerror}; name a file that does not exist yet") from error
        self._file.write(_MAGIC)
        self._write(setup)

    def add(self, step: Step) -> None:
        self._write(step)

    def close(self) -> None:
        self._file.close()

    def _write(self, item: object) -> None:
        pickle.dump(item, self._file, protocol=pickle.HIGHEST_PROTOCOL)
        self._file.flush()


def read_setup(path: Path) -> Setup:
    """What the recorded engine was made with."""
    setup = next(_items(path))
    assert isinstance(setup, Setup)
    return setup


def read(path: Path) -> list[Step]:
    """All recorded steps, in order."""
    return list(_items(path))[1:]


def _items(path: Path) -> Iterator[Any]:
    with path.open("rb") as file:
        if file.read(len(_MAGIC)) != _MAGIC:
            raise ConfigError(f"{path} is no recorded schedule")
        while True:
            try:
                yield pickle.load(file)  # noqa: S301 - written by a Recorder of this user
            except EOFError:
                return


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)
