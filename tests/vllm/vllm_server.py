"""vLLM's own server with the plug-in, as a user starts it, and what a test does to it: look, kill, freeze, end.

with VllmServer(model, folder) as server:
    server.kill(rank=1)
    server.wait_recovered(1)
"""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import msgspec
import openai
import psutil
from torch._inductor.runtime.cache_dir_utils import default_cache_dir

from ghostserve.cli.serve_vllm import CLASSES, MIDDLEWARE
from ghostserve.status import EngineStatus
from ghostserve.workers.failpoints import ENVIRONMENT as FAILPOINTS

__all__ = ["MODEL", "VLLM_ENVIRONMENT", "VllmServer", "memory_files"]

MODEL = "tiny"
"""The name that clients ask for."""
START_SECONDS = 180.0
PATIENCE = 60.0
FRONT_END_SOCKETS = 3
"""vLLM leaves those between its API server and its engine behind, with or without the plug-in."""
STOP_SECONDS = 20
VLLM_ENVIRONMENT = {
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "OMP_NUM_THREADS": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
    "VLLM_USE_V2_MODEL_RUNNER": "0",
}


class VllmServer:
    """One `vllm serve` in a session of its own, so that whatever it starts can be found, and ended, as a whole."""

    def __init__(
        self,
        model: Path,
        folder: Path,
        *options: str,
        tensor_parallel: int = 2,
        dtype: str = "bfloat16",
        cache_bytes: int = 64 << 20,
        max_model_len: int = 1024,
        by_ghostserve: bool = False,
        parity: str = "rs:1",
        **settings: object,
    ) -> None:
        """`folder`: for its log and what it records; `settings`: the plug-in's, `options`: more of vLLM's.

        `by_ghostserve`: started by `ghostserve serve`, which gives vLLM the plug-in itself; else vLLM is given it here.
        """
        self.log, self.record = folder / "log", folder / "schedule"
        self._points = folder / "failpoints"
        # Unix sockets live in it, and their paths must be short.
        self._own = Path(tempfile.mkdtemp(prefix="gsv-"))
        self._temporary, self._runtime = self._own / "tmp", self._own / "run"
        for new in (self._points, self._temporary, self._runtime):
            new.mkdir(mode=0o700, parents=True)
        # What compilers keep from one start to the next, as in users' /tmp: compiling it takes twelve seconds.
        compiled = folder.parent / "compiled"
        compiled.mkdir(mode=0o700, exist_ok=True)
        (self._temporary / Path(default_cache_dir()).name).symlink_to(compiled)
        self._port = _free_port()
        self.url = f"http://127.0.0.1:{self._port}"
        settings["record"] = str(self.record)
        classes = [*CLASSES.items(), ("--middleware", MIDDLEWARE)]
        if by_ghostserve:
            start = ["ghostserve.cli", "serve", str(model), "--engine", "vllm", "--parity", parity]
        else:
            settings["parity"] = parity
            start = ["ghostserve.vllm.launch", "serve", str(model), *(word for pair in classes for word in pair)]
        self._arguments = [
            *(sys.executable, "-m", *start, "--additional-config", json.dumps({"ghostserve": settings})),
            *("--served-model-name", MODEL, "--host", "127.0.0.1", "--port", str(self._port)),
            *("--tensor-parallel-size", str(tensor_parallel), "--dtype", dtype, "--enforce-eager"),
            *("--block-size", "32", "--kv-cache-memory-bytes", str(cache_bytes)),
            *("--max-model-len", str(max_model_len)),
            # Without it vLLM kills its engine at once, and whoever could remove what has names.
            *("--shutdown-timeout", str(STOP_SECONDS - 5)),
            *options,
        ]
        self._memory_before = set(memory_files())
        self._process: subprocess.Popen[bytes] | None = None
        self.client = openai.OpenAI(base_url=f"{self.url}/v1", api_key="-", max_retries=0, timeout=PATIENCE)
        self._http = httpx.Client(base_url=self.url, timeout=10)

    # ---- its life

    def __enter__(self) -> "VllmServer":
        environment = {**os.environ, **VLLM_ENVIRONMENT, FAILPOINTS: str(self._points)}
        environment |= {"TMPDIR": str(self._temporary), "XDG_RUNTIME_DIR": str(self._runtime)}
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                self._arguments, stdout=log, stderr=subprocess.STDOUT, env=environment, start_new_session=True
            )
        try:
            self.until(self._healthy, "the server never was healthy", START_SECONDS)
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def close(self) -> None:
        """End it as an operator does: it must go by itself, and say that all was well."""
        assert self._process is not None
        self._process.terminate()
        try:
            code = self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"alive {STOP_SECONDS} s after SIGTERM\n{self.tail()}") from None
        assert code == 0, f"ended with {code}\n{self.tail()}"

    def leftovers(self, patience: float = 5.0) -> list[str]:
        """What is still there of a server that has ended; processes get a moment to follow it."""
        until = time.monotonic() + patience
        while self._leftovers() and time.monotonic() < until:
            time.sleep(0.05)
        return self._leftovers()

    # ---- looking

    def status(self) -> EngineStatus:
        response = self._http.get("/v1/fault_tolerance/status")
        assert response.status_code == 200, response.text
        return msgspec.json.decode(response.content, type=EngineStatus)

    def get(self, path: str) -> httpx.Response:
        return self._http.get(path)

    def tail(self, lines: int = 60) -> str:
        """The end of its log."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])

    def possessions(self) -> dict[str, int]:
        """How many there are of everything that could leak: processes, memory, temporary files, descriptors."""
        processes = self._processes()
        engines = [process for process in processes if "EngineCore" in _title(process)]
        return {
            "processes": len(processes),
            "shared memory": len(self._memory()),
            "temporary files": len(list(self._temporary.rglob("*"))),
            "runtime files": len(list(self._runtime.rglob("*"))),
            "descriptors of the engine": sum(process.num_fds() for process in engines),
        }

    # ---- striking

    def kill(self, *ranks: int) -> None:
        """SIGKILL, now."""
        self._signal(signal.SIGKILL, *ranks)

    def freeze(self, rank: int) -> None:
        """SIGSTOP: it is there, and does nothing."""
        self._signal(signal.SIGSTOP, rank)

    def arm(self, point: str, action: str = "kill") -> None:
        """Set a failpoint."""
        # Written elsewhere first: a worker must not read a half-written file.
        scratch = self._own / point
        scratch.write_text(action)
        shutil.move(scratch, self._points / point)

    def armed(self) -> list[str]:
        return sorted(file.name for file in self._points.iterdir())

    # ---- waiting

    def until(self, condition: Callable[[], object], complaint: str, patience: float = PATIENCE) -> None:
        """Wait for `condition`; a server that has ended is not waited for."""
        assert self._process is not None
        deadline = time.monotonic() + patience
        while not condition():
            code = self._process.poll()
            assert code is None, f"the server ended with {code}\n{self.tail()}"
            assert time.monotonic() < deadline, f"{complaint}\n{self.tail()}"
            time.sleep(0.01)

    def wait_recovering(self) -> None:
        self.until(lambda: self.status().state == "recovering", "the loss was not noticed")

    def wait_recovered(self, count: int) -> None:
        """All ranks are up again after `count` recoveries in its life."""
        self.until(lambda: len(self.status().recoveries) >= count and self._all_up(), f"never had {count} recoveries")

    def wait_standbys(self, count: int) -> None:
        def ready() -> bool:
            return sum(standby.state == "ready" for standby in self.status().standbys) >= count

        self.until(ready, f"never had {count} standbys ready")

    # ---- inside

    def _healthy(self) -> bool:
        try:
            return self._http.get("/health").status_code == 200
        except httpx.TransportError:
            return False

    def _all_up(self) -> bool:
        status = self.status()
        return status.state == "serving" and all(rank.state == "up" for rank in status.ranks)

    def _signal(self, number: signal.Signals, *ranks: int) -> None:
        found = {rank.rank: rank.pid for rank in self.status().ranks}
        pids = [found[rank] for rank in ranks]
        assert all(pids), f"ranks {ranks} are not all there: {found}"
        for pid in pids:
            os.kill(pid, number)

    def _end(self) -> None:
        assert self._process is not None
        self._process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(STOP_SECONDS)
        for process in self._processes():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self._process.wait()
        self._http.close()
        self.client.close()
        shutil.rmtree(self._own, ignore_errors=True)

    def _processes(self) -> list[psutil.Process]:
        """Whoever is of this server's session: it, and all that it or they have started."""
        assert self._process is not None
        return [process for process in psutil.process_iter() if _session(process) == self._process.pid]

    def _memory(self) -> set[str]:
        """Shared memory that is new since the start and nobody else's."""
        new = set(memory_files()) - self._memory_before
        ours = {process.pid for process in self._processes()}
        others = (pid for pid in psutil.pids() if pid not in ours)
        return new - {name for pid in others for name in _mapped(pid)}

    def _leftovers(self) -> list[str]:
        temporary = [file for file in sorted(self._temporary.rglob("*")) if not _is_cache(file)]
        sockets = [file for file in temporary if file.is_socket()]
        if len(sockets) == FRONT_END_SOCKETS:
            temporary = [file for file in temporary if file not in sockets]
        return [
            *(f"process {process.pid} {_title(process)}" for process in self._processes()),
            *(f"shared memory {name}" for name in sorted(self._memory())),
            *map(str, temporary),
            *(str(file) for file in sorted(self._runtime.rglob("*")) if not file.is_dir()),
        ]


def memory_files() -> Iterator[str]:
    """All named shared memory of this machine."""
    return (file.name for file in Path("/dev/shm").iterdir())


def _mapped(pid: int) -> set[str]:
    try:
        lines = Path(f"/proc/{pid}/maps").read_text().splitlines()
    except OSError:  # it has ended, or is not ours to look into
        return set()
    return {line.rpartition("/dev/shm/")[2].removesuffix(" (deleted)") for line in lines if "/dev/shm/" in line}


def _session(process: psutil.Process) -> int:
    try:
        return os.getsid(process.pid) if process.status() != psutil.STATUS_ZOMBIE else -1
    except (psutil.NoSuchProcess, ProcessLookupError):
        return -1


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.NoSuchProcess:
        return ""


def _is_cache(file: Path) -> bool:
    """What compilers keep, or the way to it."""
    return any(part.startswith("torchinductor_") for part in file.parts)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
