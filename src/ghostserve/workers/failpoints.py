"""Named points where a test can make a worker die, hang, raise or wait; off unless the environment names a folder.

With `GHOSTSERVE_FAILPOINTS=FOLDER` a point fires once when a file named after it is there: `flush.encoded` for whoever
comes by first, `flush.encoded[2]` for rank 2. Its text is the action: `kill`, `stop` (SIGSTOP), `raise` or
`sleep SECONDS`.
"""

import os
import signal
import time
from pathlib import Path

from ghostserve.errors import ConfigError, GhostServeError

__all__ = ["ENVIRONMENT", "FailpointError", "Failpoints"]

ENVIRONMENT = "GHOSTSERVE_FAILPOINTS"


class FailpointError(GhostServeError):
    """Raised on purpose by a failpoint."""


class Failpoints:
    """The failpoints of one process; `folder` None: there are none, and passing one costs nothing."""

    def __init__(self, folder: str | None) -> None:
        self._folder = Path(folder) if folder else None

    @classmethod
    def from_environment(cls) -> "Failpoints":
        return cls(os.environ.get(ENVIRONMENT))

    def hit(self, name: str, rank: int) -> None:
        """Pass the point `name` as `rank`; raises `FailpointError` where a test asks for it."""
        if self._folder is None:
            return
        for file in (self._folder / f"{name}[{rank}]", self._folder / name):
            action = self._claim(file)
            if action:
                self._act(name, action)

    @staticmethod
    def _claim(file: Path) -> str:
        """Read and remove: of several processes that pass, only one gets the action."""
        try:
            mine = file.rename(file.with_name(f"{file.name}.{os.getpid()}"))
        except FileNotFoundError:
            return ""
        text = mine.read_text()
        mine.unlink()
        return text

    @staticmethod
    def _act(name: str, action: str) -> None:
        kind, _, argument = action.partition(" ")
        match kind:
            case "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            case "stop":
                os.kill(os.getpid(), signal.SIGSTOP)
            case "sleep":
                time.sleep(float(argument))
            case "raise":
                raise FailpointError(f"failpoint {name} was hit")
            case _:
                raise ConfigError(f"failpoint {name}: action {action!r}; allowed: kill, stop, raise, sleep SECONDS")
