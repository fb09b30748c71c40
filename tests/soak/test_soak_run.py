"""Real soaks: a live server, real kills, and every token compared; and one that must fail."""

import json
import os
import subprocess
import sys
from pathlib import Path

import psutil

KILLS = 30


def soak(*arguments: str, output: Path) -> "tuple[subprocess.CompletedProcess[str], dict[str, object]]":
    """Run it to its end; what it printed, and its JSON."""
    done = subprocess.run(
        [sys.executable, "-m", "ghostserve.cli", "soak", "--output", str(output), *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    return done, json.loads(output.read_text())


def test_thirty_kills_and_no_difference(tmp_path: Path) -> None:
    memory, children = sorted(os.listdir("/dev/shm")), len(psutil.Process().children(recursive=True))
    done, content = soak("--kills", str(KILLS), "--seed", "5", output=tmp_path / "soak.json")
    assert done.returncode == 0, done.stdout + done.stderr
    report = content["report"]
    assert report["kills"] == sum(report["kills_by_kind"].values()) == KILLS
    kinds = " ".join(report["kills_by_kind"])
    for kind in ("prefill", "decode", "idle", "recovery", "standby", "2 at once", "SIGSTOP"):
        assert kind in kinds, report["kills_by_kind"]
    assert report["recoveries"] >= 10
    assert report["differences"] == 0
    assert report["tokens"] > 2000
    assert report["leaks"] == report["problems"] == []
    assert report["pauses"]["p50"] <= report["pauses"]["p99"] <= report["pauses"]["longest"]
    assert "Every stream is what an undisturbed run" in done.stdout
    assert sorted(os.listdir("/dev/shm")) == memory
    assert len(psutil.Process().children(recursive=True)) == children


def test_without_the_rebuild_it_fails(tmp_path: Path) -> None:
    """The twin: newcomers keep poisoned KV, and the soak says so."""
    arguments = ("--kills", "2", "--seed", "1", "--sabotage", "skip-rebuild", "-tp", "2", "--parity", "rs:1")
    done, content = soak(*arguments, output=tmp_path / "soak.json")
    assert done.returncode == 1, done.stdout + done.stderr
    report = content["report"]
    assert report["differences"] > 0
    assert "instead of token" in report["first_difference"]
    assert "the comparison saw it" in done.stdout
    assert "Traceback" not in done.stderr
