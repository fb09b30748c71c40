"""`ghostserve serve` as a process: streams over a kill, answers its probes, stops on SIGTERM, leaves nothing."""

import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import openai
import psutil
import pytest
from cli_command import COMMAND

TOKENS = 400


@pytest.fixture
def server(tiny: str, tmp_path: Path) -> Iterator[tuple["subprocess.Popen[bytes]", str, Path]]:
    log = tmp_path / "log"
    with log.open("wb") as file:
        process = subprocess.Popen(
            [COMMAND, "serve", tiny, "-tp", "3", "--parity", "rs:1", "--port", "0", "--kv-cache-memory", "16M"],
            stdout=file,
            stderr=file,
            stdin=subprocess.DEVNULL,
        )
    try:
        deadline = time.monotonic() + 120
        while not (found := re.search(r"serving tiny-llama on (http://[\d.:]+) with 3 ranks", log.read_text())):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.1)
        yield process, found[1], log
    finally:
        process.kill()
        process.wait()


class Stream(threading.Thread):
    """One greedy completion through the official client."""

    def __init__(self, url: str) -> None:
        super().__init__()
        self._client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=90)
        self.token_ids: list[int] = []

    def run(self) -> None:
        with self._client as client:
            chunks = client.completions.create(
                model="tiny-llama",
                prompt="the ghost",
                max_tokens=TOKENS,
                temperature=0,
                stream=True,
                extra_body={"ignore_eos": True, "return_token_ids": True},
            )
            for chunk in chunks:
                self.token_ids += chunk.choices[0].model_extra["token_ids"]


def test_streams_go_on_over_a_kill(server: tuple["subprocess.Popen[bytes]", str, Path]) -> None:
    process, url, log = server
    undisturbed = Stream(url)
    undisturbed.start()
    undisturbed.join()
    stream = Stream(url)
    stream.start()
    _until(lambda: len(stream.token_ids) >= 20)
    children = psutil.Process(process.pid).children(recursive=True)
    answers = set()
    with httpx.Client(base_url=url, timeout=20, trust_env=False) as http:
        ranks = http.get("/v1/fault_tolerance/status").json()["ranks"]
        os.kill(ranks[1]["pid"], signal.SIGKILL)
        assert len(stream.token_ids) < TOKENS
        while stream.is_alive():
            assert http.get("/health").status_code == 200
            answers.add(http.get("/ready").status_code)
        assert answers == {200, 503}
        assert http.get("/ready").status_code == 200
        status = http.get("/v1/fault_tolerance/status").json()
    assert [recovery["lost_ranks"] for recovery in status["recoveries"]] == [[1]]
    assert [rank["state"] for rank in status["ranks"]] == ["up", "up", "up"]
    # Alone in the batch both times: the schedules are the same, so the tokens must be.
    assert stream.token_ids == undisturbed.token_ids
    assert len(stream.token_ids) == TOKENS
    children += psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 0, log.read_text()
    assert not [child for child in children if child.is_running() and child.status() != psutil.STATUS_ZOMBIE]
    assert "recovered in" in log.read_text()
    assert "Traceback" not in log.read_text()


def test_sigterm_while_it_starts(tiny: str) -> None:
    process = subprocess.Popen(
        [COMMAND, "serve", tiny, "-tp", "3", "--parity", "none", "--port", "0"],
        stderr=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        text=True,
    )
    assert process.stderr is not None
    with process, process.stderr:
        while "starting 3 workers" not in process.stderr.readline():
            assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0, process.stderr.read()


def _until(condition: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)
