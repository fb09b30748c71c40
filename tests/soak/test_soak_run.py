"""Real soaks: a live server, real kills, and every token compared; and one that must fail."""

import json
import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from ghostserve.soak.strikes import Draws

SEED = 0


def soak(*arguments: str, output: Path) -> "tuple[subprocess.CompletedProcess[str], dict[str, object]]":
    """Run it to its end; what it printed, and its JSON."""
    done = subprocess.run(
        [sys.executable, "-m", "ghostserve.cli", "soak", "--output", str(output), "-tp", "2", *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    return done, json.loads(output.read_text())


def planned(kills: int) -> set[tuple[str, str]]:
    """What the seed draws, as (moment, signal)."""
    draws, kinds = Draws(SEED, ranks=2, covered=2), set()
    while kills > 0:
        strike = draws.next(kills)
        kills -= len(strike.ranks)
        kinds.add((strike.moment, strike.signal))
    return kinds


@pytest.mark.parametrize("kills", [30, pytest.param(170, marks=pytest.mark.slow)])
def test_many_kills_and_no_difference(kills: int, tmp_path: Path) -> None:
    moments = {moment for moment, _ in planned(kills)}
    assert moments >= {"prefill", "decode", "recovery", "together", "standby"}, "choose another seed"
    memory, children = sorted(os.listdir("/dev/shm")), len(psutil.Process().children(recursive=True))
    done, content = soak("--kills", str(kills), "--seed", str(SEED), output=tmp_path / "soak.json")
    assert done.returncode == 0, done.stdout + done.stderr
    report = content["report"]
    assert report["kills"] == sum(report["kills_by_kind"].values()) == kills
    assert report["kills_by_kind"]["SIGKILL standby"] >= 1
    # Strikes that follow each other closely may be one recovery.
    assert report["recoveries"] >= kills / 3
    assert report["differences"] == 0
    assert report["tokens"] >= 24 * report["streams"] >= 24 * 2 * kills
    assert report["leaks"] == report["problems"] == []
    assert report["pauses"]["p50"] <= report["pauses"]["p99"] <= report["pauses"]["longest"]
    assert "Every stream is what an undisturbed run" in done.stdout
    assert sorted(os.listdir("/dev/shm")) == memory
    assert len(psutil.Process().children(recursive=True)) == children


def test_sigterm_ends_its_server_too(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "ghostserve.cli", "soak", "--kills", "50", "-tp", "2"]
    soak = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)
    assert soak.stdout is not None
    family: list[psutil.Process] = []
    try:
        while "striking" not in soak.stdout.readline():
            assert soak.poll() is None
        family = psutil.Process(soak.pid).children(recursive=True)
        assert len(family) >= 3, "the server and its ranks"
        soak.terminate()
        assert soak.wait(60) == 143
        _, left = psutil.wait_procs(family, timeout=10)
        assert not left
    finally:
        for process in (soak, *family):
            with suppress(psutil.NoSuchProcess):
                process.kill()


def test_without_the_rebuild_it_fails(tmp_path: Path) -> None:
    """The twin: newcomers keep poisoned KV, and the soak says so."""
    arguments = ("--kills", "1", "--seed", "4", "--sabotage", "skip-rebuild", "--parity", "rs:1", "--standbys", "1")
    done, content = soak(*arguments, output=tmp_path / "soak.json")
    assert done.returncode == 1, done.stdout + done.stderr
    report = content["report"]
    assert report["differences"] > 0
    assert "instead of token" in report["first_difference"]
    assert "the comparison saw it" in done.stdout
    assert "Traceback" not in done.stderr
