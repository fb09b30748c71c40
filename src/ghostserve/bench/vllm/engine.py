"""The bench's side of an engine: start it, send it work, end it with all of its processes."""

import multiprocessing
import os
import signal
import tempfile
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any

from ghostserve.bench.vllm.child import rerun_schedule, serve
from ghostserve.bench.vllm.work import EngineSettings, Outcome, Rerun, Work
from ghostserve.errors import GhostServeError
from ghostserve.status import EngineStatus
from ghostserve.vllm.status_file import read_status

__all__ = ["BenchEngine", "rerun_of"]

_START_SECONDS, _WORK_SECONDS, _STOP_SECONDS = 300.0, 600.0, 30.0
_SPAWN = multiprocessing.get_context("spawn")


class _Child:
    """A process of the bench, and a pipe to it."""

    def __init__(self, entry: Any, argument: object, folder: Path) -> None:
        self._log = folder / "log"
        self.connection, theirs = _SPAWN.Pipe()
        self.process = _SPAWN.Process(target=entry, args=(theirs, argument, self._log))
        self.process.start()
        theirs.close()

    def receive(self, seconds: float) -> Any:
        """The next message. Raises `GhostServeError`, with the end of the log, if there is none."""
        try:
            message = self.connection.recv() if self.connection.poll(seconds) else TimeoutError(f"{seconds:.0f} s")
        except EOFError:
            message = EOFError("the process has ended")
        if isinstance(message, Exception):
            tail = "\n".join(self._log.read_text(errors="replace").splitlines()[-15:])
            raise GhostServeError(f"vLLM failed: {message!r}\n{tail}")
        return message

    def end(self, patience: float = _STOP_SECONDS) -> None:
        """Wait for it, then end whatever there is of its session. Idempotent."""
        self.process.join(patience)
        session = self.process.pid
        for folder in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                if os.getsid(int(folder.name)) == session:
                    os.kill(int(folder.name), signal.SIGKILL)
        self.process.join()
        self.connection.close()


class BenchEngine:
    """A vLLM engine and its folder: `start`, `run` work, `close`; or `with`, which does the first and the last."""

    def __init__(self, settings: EngineSettings) -> None:
        self._settings = settings
        self._folder = tempfile.TemporaryDirectory(prefix="ghostserve-bench-")
        self._status, self.record = Path(self._folder.name, "status.json"), Path(self._folder.name, "schedule")
        self._child: _Child | None = None

    def __enter__(self) -> "BenchEngine":
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def start(self) -> None:
        """Wait until it serves, and its standbys are ready."""
        settings = self._settings
        if settings.plugin is not None:
            plugin = {**settings.plugin, "status_path": str(self._status)}
            if plugin.pop("record", False):
                plugin["record"] = str(self.record)
            settings = replace(settings, plugin=plugin)
        self._child = _Child(serve, settings, Path(self._folder.name))
        self._child.receive(_START_SECONDS)
        self.await_standbys()

    def run(self, work: Work, seed: int = 0) -> Outcome:
        """Do `work` and wait for it."""
        assert self._child is not None
        self._child.connection.send((work, seed))
        outcome = self._child.receive(_WORK_SECONDS)
        assert isinstance(outcome, Outcome)
        return outcome

    def stop(self, patience: float = _STOP_SECONDS) -> None:
        """End it and its processes; its record stays. Idempotent."""
        child, self._child = self._child, None
        if child is not None:
            with suppress(OSError):
                child.connection.send(None)
            child.end(patience)

    def close(self, patience: float = _STOP_SECONDS) -> None:
        """End it, and remove its files. Idempotent."""
        self.stop(patience)
        self._folder.cleanup()

    def status(self) -> EngineStatus:
        """The plug-in's."""
        found = read_status(self._status)
        if found is None:
            raise GhostServeError("the plug-in has not published its status")
        return found

    def await_standbys(self) -> None:
        """Wait until there are as many as the settings say."""
        wanted = (self._settings.plugin or {}).get("standbys", 0)
        until = time.monotonic() + _START_SECONDS
        while wanted and sum(standby.state == "ready" for standby in self.status().standbys) < wanted:
            if time.monotonic() > until:
                raise GhostServeError(f"no {wanted} standbys were ready within {_START_SECONDS:.0f} s")
            time.sleep(0.1)


def rerun_of(record: Path) -> Rerun:
    """The recorded schedule once more, on undisturbed workers."""
    with tempfile.TemporaryDirectory(prefix="ghostserve-bench-") as folder:
        child = _Child(rerun_schedule, record, Path(folder))
        try:
            found = child.receive(_WORK_SECONDS)
        finally:
            child.end()
    assert isinstance(found, Rerun)
    return found
