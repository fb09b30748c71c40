"""Limits that are too low at the start: one sentence that names the value and what is needed, and nothing started."""

import re
import resource
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from ghostserve.errors import ConfigError
from ghostserve.server import ServerSettings
from ghostserve.server.descriptors import ensure_descriptors

# Imports first, as they take address space too; then the limit, and what a user types.
LIMITED_MEMORY = """
import re, resource, sys
from pathlib import Path
import ghostserve.engine.engine
from ghostserve.cli.main import main
from ghostserve.engine.dryrun import check_forward
taken = int(re.search(r"VmSize:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) << 10
resource.setrlimit(resource.RLIMIT_AS, (taken + int(sys.argv[1]),) * 2)
sys.exit(main(sys.argv[2:]))
"""
CACHE = 2 << 30
MANY = "1024"  # sequences: fewer could not fill such a cache, and it would be made smaller


@pytest.mark.parametrize(
    ("room", "what"),
    [
        (CACHE // 2 + CACHE // 4, "ghostserve-kv-1 of 1.0 GiB"),
        (CACHE + CACHE // 4, "ghostserve-parity of"),
    ],
    ids=["the caches", "the store"],
)
def test_memory_that_the_system_refuses(tiny_llama: str, room: int, what: str) -> None:
    serve = ["serve", tiny_llama, "-tp", "2", "--device", "cpu", "--port", "0", "--kv-cache-memory", str(CACHE)]
    serve += ["--max-num-seqs", MANY, "--max-num-batched-tokens", MANY]
    command = [sys.executable, "-c", LIMITED_MEMORY, str(room), *serve]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 1, done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert what in line
    assert "the system refuses the shared memory (Cannot allocate memory)" in line
    assert "Traceback" not in done.stderr
    assert "starting" not in done.stderr


def test_too_few_open_files(tiny_llama: str) -> None:
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (300, 300))

    done = subprocess.run(
        [sys.executable, "-m", "ghostserve.cli", "serve", tiny_llama, "--port", "0"],
        capture_output=True, text=True, timeout=60, check=False, preexec_fn=limit,
    )  # fmt: skip
    assert done.returncode == 2
    assert re.fullmatch(
        r"error: this process may have 300 files open, and 512 connections and 2 workers need \d+: raise the limit"
        r" \(ulimit -n\), or lower --limit-concurrency",
        done.stderr.strip(),
    )


@contextmanager
def open_files(soft: int) -> Iterator[int]:
    """Another soft limit of this process; gives the hard one."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, before[1]))
    try:
        yield before[1]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_a_low_limit_is_raised_as_far_as_is_needed_and_a_high_one_stays() -> None:
    with open_files(400) as hard:
        ensure_descriptors(ServerSettings(), workers=3)
        soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        assert 512 < soft <= hard
        ensure_descriptors(ServerSettings(limit_concurrency=8), workers=3)
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == soft
    with open_files(400) as hard, pytest.raises(ConfigError, match=rf"may have {hard} files open, and {hard} connect"):
        ensure_descriptors(ServerSettings(limit_concurrency=hard), workers=3)
