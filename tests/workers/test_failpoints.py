import os
import signal
import subprocess
import sys
import time

import pytest

from ghostserve.errors import ConfigError
from ghostserve.workers.failpoints import ENVIRONMENT, FailpointError, Failpoints


def test_without_a_folder_nothing_happens(monkeypatch):
    monkeypatch.delenv(ENVIRONMENT, raising=False)
    Failpoints.from_environment().hit("step.begin", 0)


def test_a_point_fires_once(tmp_path, monkeypatch):
    monkeypatch.setenv(ENVIRONMENT, str(tmp_path))
    points = Failpoints.from_environment()
    (tmp_path / "step.begin").write_text("raise")
    with pytest.raises(FailpointError, match=r"step\.begin"):
        points.hit("step.begin", 0)
    points.hit("step.begin", 0)
    assert list(tmp_path.iterdir()) == []


def test_a_point_may_be_one_ranks_alone(tmp_path):
    points = Failpoints(str(tmp_path))
    (tmp_path / "step.begin[2]").write_text("raise")
    points.hit("step.begin", 1)
    points.hit("step.end", 2)
    with pytest.raises(FailpointError):
        points.hit("step.begin", 2)


def test_sleep_waits(tmp_path):
    (tmp_path / "p").write_text("sleep 0.05")
    began = time.monotonic()
    Failpoints(str(tmp_path)).hit("p", 0)
    assert time.monotonic() - began >= 0.05


def test_an_unknown_action_names_those_that_exist(tmp_path):
    (tmp_path / "p").write_text("explode")
    with pytest.raises(ConfigError, match=r"'explode'.*kill, stop, raise, sleep"):
        Failpoints(str(tmp_path)).hit("p", 0)


@pytest.mark.parametrize(("action", "expected"), [("kill", signal.SIGKILL), ("stop", signal.SIGSTOP)])
def test_kill_and_stop_are_signals_to_oneself(tmp_path, action, expected):
    (tmp_path / "p").write_text(action)
    code = f"from ghostserve.workers.failpoints import Failpoints; Failpoints({str(tmp_path)!r}).hit('p', 0)"
    process = subprocess.Popen([sys.executable, "-c", code])
    try:
        _, status = os.waitpid(process.pid, os.WUNTRACED)
        if action == "kill":
            assert os.WTERMSIG(status) == expected
        else:
            assert os.WSTOPSIG(status) == expected
    finally:
        process.kill()
        process.wait()
