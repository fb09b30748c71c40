"""The contract of a server that a soak starts, strikes and stops, and what the engines' servers have in common."""

import os
import shutil
import signal
import subprocess
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import psutil

from ghostserve.errors import GhostServeError
from ghostserve.soak import possessions
from ghostserve.soak.settings import SoakSettings

__all__ = ["Comparison", "Drawn", "SoakServer"]

_START_SECONDS = 240.0
_STOP_SECONDS = 45.0
_LINGER_SECONDS = 5.0
_TURN = 0.05

Drawn = tuple[int, float | None]
"""A token's id and its logprob, None for one that is not a number."""


@dataclass(frozen=True)
class Comparison:
    """A recorded schedule against its undisturbed rerun.

    `delivered`: request -> what the engine recorded for it, by the first two parts of its name. `first`: where the
    first difference is. `computed_again`: tokens whose KV was computed more than once, replays apart; None: unknown.
    """

    tokens: int
    differences: int
    first: str | None
    delivered: dict[str, list[Drawn]]
    computed_again: int | None


class SoakServer(ABC):
    """A server in a session of its own, with its own folder for temporary files; a context manager."""

    model_name = "soak"
    seeded = True
    """False where sampled requests must not bring a seed."""

    def __init__(self, settings: SoakSettings, model: Path) -> None:
        self.settings = settings
        self.model = model
        self.url = ""
        # Sockets may be made in it, whose paths must be short.
        self._own = Path(tempfile.mkdtemp(prefix="gs-soak-"))
        self._temporary, self._runtime = self._own / "tmp", self._own / "run"
        for folder in (self._temporary, self._runtime):
            folder.mkdir(mode=0o700)
        self.record, self.log = self._own / "schedule", self._own / "log"
        self._memory_before = possessions.named_memory()
        self._process: subprocess.Popen[bytes] | None = None

    # ---- the engine's part

    @abstractmethod
    def command(self) -> Sequence[str]:
        """What to run."""

    def environment(self) -> Mapping[str, str]:
        """Beside the present one."""
        return {}

    @abstractmethod
    def find_url(self) -> str | None:
        """Where it answers, once it does."""

    def is_own(self, left: Path) -> bool:
        """Whether a file in the folder for temporary files is kept there with no kill at all."""
        return False

    @abstractmethod
    def compare(self, on_progress: Callable[[int, int], None]) -> Comparison:
        """Run the recorded schedule again, undisturbed; after the stop. Raises `GhostServeError` if it can't be."""

    # ---- its life

    def __enter__(self) -> "SoakServer":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()
        shutil.rmtree(self._own, ignore_errors=True)

    def start(self) -> None:
        """Returns when it serves; raises `GhostServeError` with the end of its log if it never does."""
        folders = {"TMPDIR": str(self._temporary), "XDG_RUNTIME_DIR": str(self._runtime)}
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                self.command(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, **folders, **self.environment()},
                start_new_session=True,
            )
        deadline = time.monotonic() + _START_SECONDS
        while (url := self.find_url()) is None:
            self.check()
            if time.monotonic() > deadline:
                raise GhostServeError(f"the server did not serve within {_START_SECONDS:.0f} s: {self.tail()}")
            time.sleep(_TURN)
        self.url = url

    def check(self) -> None:
        """Raises `GhostServeError` with the end of its log if the server has ended."""
        assert self._process is not None
        code = self._process.poll()
        if code is not None:
            raise GhostServeError(f"the server ended with {code}: {self.tail()}")

    def stop(self) -> int | None:
        """Ask it to end, as an operator does. Its exit code, or None if it had to be killed."""
        assert self._process is not None
        self._process.terminate()
        try:
            return self._process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            return None

    def kill(self) -> None:
        """End whatever is left of it; again and again does no harm."""
        if self._process is None:
            return
        for process in possessions.members(self._process.pid):
            with suppress(psutil.NoSuchProcess):
                process.kill()
        self._process.wait()

    # ---- looking and striking

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def strike(self, pid: int, number: signal.Signals) -> bool:
        """Send a signal to one of its processes; False if there is no such process any more."""
        if not possessions.belongs_to(self.pid, pid):
            return False
        os.kill(pid, number)
        return True

    def possessions(self, workers: Sequence[int]) -> possessions.Possessions:
        """What it holds now."""
        return possessions.count(self.pid, workers, self._memory_before)

    def leftovers(self) -> list[str]:
        """What is still there after its end; processes get a moment to follow it."""
        deadline = time.monotonic() + _LINGER_SECONDS
        while (left := self._leftovers()) and time.monotonic() < deadline:
            time.sleep(_TURN)
        return left

    def tail(self, lines: int = 8) -> str:
        """The end of its log, in one line."""
        text = self.log.read_text(errors="replace") if self.log.exists() else ""
        return " | ".join(line.strip() for line in text.splitlines()[-lines:] if line.strip()) or "its log is empty"

    def _leftovers(self) -> list[str]:
        files = [file for folder in (self._temporary, self._runtime) for file in sorted(folder.rglob("*"))]
        return [
            *(f"process {process.pid}" for process in possessions.members(self.pid)),
            *(
                f"shared memory {name}"
                for name in sorted(possessions.named_memory(apart_from=self.pid) - self._memory_before)
            ),
            *(f"file {file}" for file in files if not file.is_dir() and not self.is_own(file)),
        ]
