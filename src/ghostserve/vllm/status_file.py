"""The engine's status, from the process that has it to vLLM's API servers: one small file, replaced as a whole.

vLLM runs the executor in the engine process and HTTP in others; nothing of vLLM carries a plug-in's status between
them while a step hangs. A file does, and needs nobody's answer.
"""

import os
import stat
import tempfile
from contextlib import suppress
from pathlib import Path

import msgspec

from ghostserve.errors import ConfigError
from ghostserve.status import EngineStatus

__all__ = ["ENVIRONMENT", "StatusPublisher", "default_status_path", "read_status", "status_path"]

ENVIRONMENT = "GHOSTSERVE_STATUS_FILE"
"""Names the file where the settings don't; every process of one server inherits it."""


class _Published(msgspec.Struct, frozen=True):
    pid: int  # the publisher's: a status outlives it by no more than this
    status: EngineStatus


def default_status_path(instance_id: str) -> Path:
    """The file of one vLLM instance, in a folder that only this user can enter.

    `instance_id` is `VllmConfig.instance_id`. vLLM makes a new one for every API server if there are several
    (`--api-server-count`), so these need `status_path` in the settings, or `GHOSTSERVE_STATUS_FILE`.
    """
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    if runtime and os.access(runtime, os.W_OK | os.X_OK):
        return Path(runtime) / "ghostserve" / f"{instance_id}.json"
    return Path(tempfile.gettempdir()) / f"ghostserve-{os.getuid()}" / f"{instance_id}.json"


def status_path(configured: str | None, instance_id: str) -> Path:
    """The settings' path, else the environment's, else the default: the same in all processes of one server."""
    named = configured or os.environ.get(ENVIRONMENT)
    return Path(named) if named else default_status_path(instance_id)


class StatusPublisher:
    """Owns the file: created with the first status, removed by `close`."""

    def __init__(self, path: Path) -> None:
        """Makes the folder (0700); raises `ConfigError` if another user owns it, or could write to it."""
        self.path = path
        self._next = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            found = path.parent.stat(follow_symlinks=False)
        except OSError as error:
            raise ConfigError(f"status file {path}: its folder can't be made: {error}; name another path") from error
        if found.st_uid != os.getuid() or not stat.S_ISDIR(found.st_mode) or found.st_mode & 0o022:
            raise ConfigError(
                f"status file {path}: {path.parent} must be a folder that user {os.getuid()} owns and nobody else can"
                f" write to; it has owner {found.st_uid} and mode {stat.filemode(found.st_mode)}"
            )

    def publish(self, status: EngineStatus) -> None:
        """Readers see the status before or this one, never a part of it."""
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)  # cleaners of temporary folders may take it
        self._next.unlink(missing_ok=True)  # left by a crash of this very process id
        file = os.open(self._next, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        with open(file, "wb") as stream:
            stream.write(msgspec.json.encode(_Published(os.getpid(), status)))
        self._next.replace(self.path)

    def close(self) -> None:
        """Removes the file; again and again does no harm."""
        self._next.unlink(missing_ok=True)
        self.path.unlink(missing_ok=True)


def read_status(path: Path) -> EngineStatus | None:
    """The published status; None if there is none, it is no status, another user's, or its publisher is dead."""
    try:
        file = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return None
    with open(file, "rb") as stream:
        found = os.fstat(file)
        if found.st_uid != os.getuid() or not stat.S_ISREG(found.st_mode):
            return None
        content = stream.read()
    with suppress(msgspec.DecodeError, OSError, OverflowError):
        published = msgspec.json.decode(content, type=_Published)
        os.kill(published.pid, 0)  # raises if there is no such process of this user
        return published.status
    return None
