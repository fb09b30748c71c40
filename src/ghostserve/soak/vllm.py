"""A soak of vLLM with the plug-in: its server is `ghostserve serve --engine vllm`, its oracle `vllm.rerun`."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import httpx
import msgspec

from ghostserve.errors import GhostServeError
from ghostserve.soak.server import Comparison, SoakServer

__all__ = ["ENVIRONMENT", "VllmServer"]

ENVIRONMENT = {
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "OMP_NUM_THREADS": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_USE_V2_MODEL_RUNNER": "0",
}
_CACHE_BYTES = 64 << 20
_CONTEXT = 1024
_CHUNK = 64
_LOOK_SECONDS = 5.0
_SHUTDOWN_SECONDS = 15


class VllmServer(SoakServer):
    """`SoakServer` of vLLM on the CPU."""

    seeded = False  # vLLM can't cut the prompts of requests with a seed on the CPU
    _port = 0

    def command(self) -> Sequence[str]:
        settings = self.settings
        plugin: dict[str, object] = {"record": str(self.record)}
        if settings.sabotage == "skip-rebuild":
            plugin["skip_rebuild"] = True
        self._port = _free_port()
        return [
            *(sys.executable, "-m", "ghostserve.cli", "serve", str(self.model), "--engine", "vllm"),
            *("--parity", settings.parity, "--standbys", str(settings.standbys)),
            *("--step-deadline", str(settings.step_deadline), "--phase-deadline", str(settings.phase_deadline)),
            *("--additional-config", json.dumps({"ghostserve": plugin})),
            *("--served-model-name", self.model_name, "--host", "127.0.0.1", "--port", str(self._port)),
            *("--tensor-parallel-size", str(settings.tensor_parallel_size), "--enforce-eager"),
            *("--block-size", "32", "--kv-cache-memory-bytes", str(_CACHE_BYTES)),
            *("--max-model-len", str(_CONTEXT), "--max-num-batched-tokens", str(_CHUNK)),
            # Without it vLLM kills its engine at once, and whoever could remove what has names.
            *("--shutdown-timeout", str(_SHUTDOWN_SECONDS)),
        ]

    def environment(self) -> Mapping[str, str]:
        return {name: value for name, value in ENVIRONMENT.items() if name not in os.environ}

    def find_url(self) -> str | None:
        url = f"http://127.0.0.1:{self._port}"
        with suppress(httpx.TransportError):
            if httpx.get(f"{url}/health", timeout=_LOOK_SECONDS, trust_env=False).status_code == 200:
                return url
        return None

    def is_own(self, left: Path) -> bool:
        """The sockets between its API server and its engine, with or without the plug-in; compilers' caches."""
        return left.is_socket() or any(part.startswith("torchinductor_") for part in left.parts)

    def compare(self, on_progress: Callable[[int, int], None]) -> Comparison:
        """In a process of its own: vLLM takes its settings from the environment, and keeps what it has set up."""
        result = self._own / "comparison"
        command = [sys.executable, "-m", "ghostserve.soak.vllm_rerun", str(self.record), str(result)]
        with self.log.open("ab") as log:
            done = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, **self.environment()},
                check=False,
            )
        if done.returncode != 0:
            raise GhostServeError(f"the undisturbed rerun ended with {done.returncode}: {self.tail()}")
        return msgspec.msgpack.decode(result.read_bytes(), type=Comparison)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
