"""Flags, help and errors: one line on stderr, the right exit code, and nothing started."""

import socket
import subprocess
import sys

import pytest
import torch
from cli_command import COMMAND, RunCommand

from ghostserve import __version__
from ghostserve.cli.main import main
from ghostserve.cli.sizes import parse_size, show_size
from ghostserve.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "count"), [("17", 17), ("512M", 512 << 20), ("4G", 4 << 30), ("1.5GiB", 3 << 29), ("8 kb", 8192)]
)
def test_sizes(text: str, count: int) -> None:
    assert parse_size(text) == count


@pytest.mark.parametrize("text", ["", "M", "-1", "4X", "1e9", "lots"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(ConfigError, match="is no size"):
        parse_size(text)


def test_sizes_are_shown_short() -> None:
    assert [show_size(n) for n in (0, 1023, 1536, 48 << 20)] == ["0 B", "1023 B", "1.5 KiB", "48.0 MiB"]


def test_help_imports_nothing_slow_and_version_is_known(ghostserve: RunCommand) -> None:
    command = [sys.executable, "-X", "importtime", COMMAND, "--help"]
    helped = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True, stdin=subprocess.DEVNULL)
    assert all(command in helped.stdout for command in ("serve", "demo", "bench"))
    imported = {line.rpartition("|")[2].strip() for line in helped.stderr.splitlines()}
    assert "ghostserve.cli.main" in imported
    assert not imported & {"torch", "transformers", "numba"}
    assert ghostserve("--version").stdout.strip() == __version__


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["serve"], "CHECKPOINT"),
        (["serve", "x", "--bogus"], "--bogus"),
        (["serve", "x", "-tp", "three"], "-tp"),
        (["serve", "x", "-tp", "0"], "tensor_parallel_size must be at least 1, not 0"),
        (["serve", "x", "--kv-cache-memory", "4X"], "'4X' is no size"),
        (["serve", "x", "--encoder", "all"], "allowed: round_robin, striped"),
        (["serve", "x", "--dtype", "int3"], "dtype 'int3' is unknown"),
        (["serve", "x", "--log-level", "loud"], "log level 'loud' is unknown"),
        (["serve", "x", "--port", "70000"], "port is 70000"),
        (["serve", "x", "--api-key", "good", "--api-key", ""], "API key 2 is empty"),
        (["serve", "x", "--max-body-bytes", "0"], "max_body_bytes is 0: it must be greater than 0"),
        (["serve", "x", "--body-timeout", "inf"], "body_timeout is inf"),
        (["serve", "x", "--max-queue", "0"], "max_queue must be at least 1, not 0"),
        (["demo", "--sabotage", "luck"], "sabotage 'luck' is unknown; allowed: skip-rebuild"),
        (["demo", "--parity", "none"], "parity is 'none'"),
        (["demo", "--max-tokens", "2"], "max_tokens must be at least 24, not 2"),
        (["demo", "--svg", "/no/such/folder/x.svg"], "folder does not exist"),
        (
            ["bench", "luck"],
            "benchmark 'luck' is unknown; allowed: all, codes, overhead, pause, hybrid, gpu-all, kernels",
        ),
        (["bench", "strategies", "--contexts", "256", "8"], "a context of 8 tokens is below 16"),
        (["bench", "strategies", "--parity", "none"], "parity 'none' is one of the ways already"),
        (["bench", "sensitivity", "--axes", "ranks", "luck"], "axis 'luck' is unknown; allowed: code, ranks"),
        (["bench", "overhead", "--device", "tpu"], "device 'tpu' is unknown; allowed: cpu, cuda"),
        (["bench", "codes", "--output", "/no/such/folder/x.json"], "the folder '/no/such/folder' does not exist"),
    ],
)
def test_bad_settings(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert said in error


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("which", ["kernels", "checkpoint", "rebuild", "contexts", "gpu-all", "overhead --device cuda"])
def test_benchmarks_of_a_gpu_that_is_not_there(which: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", *which.split()]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: benchmark ")
    assert "needs a CUDA device" in error
    assert error.count("\n") == 1


def test_a_checkpoint_that_is_missing(ghostserve: RunCommand) -> None:
    done = ghostserve("serve", "/no/such/model", "--port", "0", "--log-level", "error")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: checkpoint '/no/such/model' does not exist")
    assert done.stderr.count("\n") == 1


def test_a_code_that_nobody_knows(ghostserve: RunCommand, tiny: str) -> None:
    done = ghostserve("serve", tiny, "-tp", "3", "--parity", "magic:2", "--port", "0", "--log-level", "error")
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert "'magic:2'" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_port_in_use(ghostserve: RunCommand, tiny: str) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = ghostserve("serve", tiny, "--port", str(port), "--log-level", "error")
    assert done.returncode == 2
    assert done.stderr == f"error: port {port} on 127.0.0.1 is in use; choose another with --port\n"


def test_a_code_does_not_go_with_copies(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "model", "--protect", "replicate-host", "--parity", "rs:2"]) == 2
    assert "--parity rs:2 names a code for --protect parity, not for replicate-host" in capsys.readouterr().err


def test_keys_come_from_flags_or_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[object, ...]] = []
    monkeypatch.setattr("ghostserve.cli.serve.run_server", lambda *a, **kw: seen.append((kw["api_keys"], a[1])) or 0)
    monkeypatch.setenv("GHOSTSERVE_API_KEY", "one two")
    assert main(["serve", "x", "--limit-concurrency", "7"]) == 0
    assert main(["serve", "x", "--api-key", "three", "--api-key", "four"]) == 0
    monkeypatch.delenv("GHOSTSERVE_API_KEY")
    assert main(["serve", "x"]) == 0
    assert [list(keys) for keys, _ in seen] == [["one", "two"], ["three", "four"], []]
    assert [limits.limit_concurrency for _, limits in seen] == [7, 512, 512]


@pytest.mark.parametrize("value", ["", " "])
def test_an_empty_key_in_the_environment_opens_nothing(
    value: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Set but empty is a mistake in some script: a server without keys would be the worst answer to it."""
    monkeypatch.setenv("GHOSTSERVE_API_KEY", value)
    assert main(["serve", "/no/such/model", "--port", "0"]) == 2
    assert "GHOSTSERVE_API_KEY" in capsys.readouterr().err
