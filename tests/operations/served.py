"""`ghostserve serve` as a process in a session of its own, and looking at all that belongs to it."""

import json
import os
import re
import resource
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import psutil

__all__ = ["FULL_SHARED_MEMORY", "Served", "Streaming", "until"]

PATIENCE = 60.0
FULL_SHARED_MEMORY = 'mount -t tmpfs -o size=4k none /dev/shm && head -c 4k /dev/zero > /dev/shm/full && exec "$@"'
"""A shell's way to run a command where no byte of /dev/shm is left."""


def until(condition: Callable[[], object], seconds: float = PATIENCE) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


class Served:
    """A context manager; `open_files`: the hard limit that it starts with."""

    def __init__(
        self, model: str, log: Path, *options: str, port: int = 0, open_files: int | None = None, full_shm: bool = False
    ) -> None:
        self.log = log
        self.full_shm = full_shm and _may_mount()
        command = [
            *(sys.executable, "-m", "ghostserve.cli", "serve", model, "-tp", "2", "--device", "cpu"),
            *("--kv-cache-memory", "16M", "--port", str(port), *options),
        ]
        if self.full_shm:
            command = ["unshare", "--mount", "sh", "-c", FULL_SHARED_MEMORY, "sh", *command]

        def limit() -> None:
            if open_files is not None:
                resource.setrlimit(resource.RLIMIT_NOFILE, (min(64, open_files), open_files))

        with log.open("wb") as file:
            self.process = subprocess.Popen(
                command, stdout=file, stderr=file, stdin=subprocess.DEVNULL, start_new_session=True, preexec_fn=limit
            )
        self.url = ""

    def __enter__(self) -> "Served":
        try:
            until(self._serves, 120)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.family():
            process.kill()
        self.process.wait()

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    def get(self, path: str) -> httpx.Response:
        return httpx.get(self.url + path, timeout=20, trust_env=False)

    def post(self, **body: Any) -> httpx.Response:
        return httpx.post(f"{self.url}/v1/completions", json={"prompt": "the"} | body, timeout=20, trust_env=False)

    def status(self) -> dict[str, Any]:
        found: dict[str, Any] = self.get("/v1/fault_tolerance/status").json()
        return found

    def family(self) -> list[psutil.Process]:
        """All living processes of its session."""
        found = []
        for process in psutil.process_iter():
            try:
                if os.getsid(process.pid) == self.process.pid and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
            except (ProcessLookupError, psutil.NoSuchProcess):
                continue
        return found

    def _serves(self) -> bool:
        text = self.log.read_text()
        assert self.process.poll() is None, text
        found = re.search(r"serving \S+ on (http://[\d.:]+) with", text)
        self.url = found[1] if found else ""
        return bool(found)


class Streaming(threading.Thread):
    """One greedy completion, as it comes."""

    def __init__(self, server: Served, tokens: int) -> None:
        super().__init__(daemon=True)
        self._server = server
        self._tokens = tokens
        self.token_ids: list[int] = []
        self.last = ""
        self.error: Exception | None = None
        self.start()

    def run(self) -> None:
        body = {"prompt": "the ghost", "max_tokens": self._tokens, "temperature": 0, "stream": True}
        body |= {"ignore_eos": True, "return_token_ids": True}
        try:
            with httpx.stream(
                "POST", f"{self._server.url}/v1/completions", json=body, timeout=90, trust_env=False
            ) as answer:
                for line in answer.iter_lines():
                    if line.startswith("data: {"):
                        self._take(line)
                    self.last = line or self.last
        except httpx.HTTPError as error:
            self.error = error

    def whole(self) -> bool:
        """Wait for its end; whether all tokens came."""
        self.join(PATIENCE)
        return self.error is None and self.last == "data: [DONE]" and len(self.token_ids) == self._tokens

    def _take(self, line: str) -> None:
        for choice in json.loads(line.removeprefix("data: "))["choices"]:
            self.token_ids += choice.get("token_ids") or []


def _may_mount() -> bool:
    """Whether this user may have a mount of its own."""
    if shutil.which("unshare") is None:
        return False
    return (
        subprocess.run(["unshare", "--mount", "sh", "-c", FULL_SHARED_MEMORY, "sh", "true"], check=False).returncode
        == 0
    )
