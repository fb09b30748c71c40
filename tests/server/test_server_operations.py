"""Health, readiness, metrics, status; clients that go away; long pauses; ports; signals."""

import asyncio
import os
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from server_fakes import FakeEngine

from ghostserve import __version__
from ghostserve.errors import ConfigError
from ghostserve.server import ServerSettings, bind, serve

Eventually = Callable[[Callable[[], object]], None]
BODY = {"prompt": "the", "max_tokens": 20}


def scrape(http: httpx.Client) -> dict[str, float]:
    answer = http.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain")
    return {
        sample.name + "".join(sorted(f",{k}={v}" for k, v in sample.labels.items())): sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
    }


@pytest.mark.parametrize(
    ("state", "health", "ready"), [("serving", 200, 200), ("recovering", 200, 503), ("failed", 503, 503)]
)
def test_health_and_ready(http: httpx.Client, engine: FakeEngine, state: str, health: int, ready: int) -> None:
    engine.state = state
    assert http.get("/health").status_code == health
    answer = http.get("/ready")
    assert (answer.status_code, answer.json()["state"]) == (ready, state)
    assert ("retry-after" in answer.headers) == (ready == 503)
    assert http.post("/v1/completions", json=BODY).status_code == (503 if state == "failed" else 200)


def test_status_and_version(http: httpx.Client, engine: FakeEngine) -> None:
    status = http.get("/v1/fault_tolerance/status").json()
    assert status["ranks"] == [
        {"rank": 0, "pid": 100, "state": "up"},
        {"rank": 1, "pid": 101, "state": "lost"},
    ]
    assert (status["epoch"], status["watermark"], status["parity_bytes"]) == (2, 40, 4096)
    assert status["recoveries"][0]["phases"] == [["detected", 0.0], ["resumed", 1.5]]
    assert http.get("/version").json() == {"version": __version__}


def test_metrics(http: httpx.Client, engine: FakeEngine) -> None:
    before = scrape(http)
    http.post("/v1/completions", json=BODY)
    after = scrape(http)
    model = ",model_name=tiny"
    assert after["vllm:kv_cache_usage_perc" + model] == 0.25
    grown = {
        "vllm:generation_tokens_total": 20,
        "vllm:prompt_tokens_total": len(engine.tokenizer.encode("the")),
        "vllm:time_to_first_token_seconds_count": 1,
        "vllm:inter_token_latency_seconds_count": 19,
        "vllm:time_per_output_token_seconds_count": 19,
        "vllm:e2e_request_latency_seconds_count": 1,
    }
    assert {name: after[name + model] - before[name + model] for name in grown} == grown
    assert after["ghostserve_recoveries_total"] == 1
    assert after["ghostserve_flushes_total"] == 7
    assert after["ghostserve_rebuilt_bytes_total"] == 1000
    assert after["ghostserve_recovery_seconds_bucket,le=2.0"] == 1
    assert after["ghostserve_recovery_seconds_sum"] == 1.5
    assert (after["ghostserve_rank_up,rank=0"], after["ghostserve_rank_up,rank=1"]) == (1, 0)
    assert (after["ghostserve_watermark"], after["ghostserve_step"], after["ghostserve_epoch"]) == (40, 41, 2)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("pause_at", [0, 5])
def test_a_client_that_goes_away(
    http: httpx.Client, engine: FakeEngine, eventually: Eventually, stream: bool, pause_at: int
) -> None:
    aborts = "vllm:request_success_total,finished_reason=abort,model_name=tiny"
    before = scrape(http)[aborts]
    engine.pause_at = pause_at
    with httpx.Client(base_url=http.base_url, timeout=0.3) as client:
        if stream:
            with client.stream("POST", "/v1/completions", json={**BODY, "n": 3, "stream": True}) as answer:
                assert answer.status_code == 200  # and leave; keep-alives would hold off the timeout
        else:
            with pytest.raises(httpx.ReadTimeout):
                client.post("/v1/completions", json={**BODY, "n": 3})
    eventually(lambda: len(engine.aborted) == 3 and not engine.running)
    assert scrape(http)[aborts] - before == 3


def test_keep_alives_in_a_long_pause(http: httpx.Client, engine: FakeEngine) -> None:
    engine.pause_at = 5
    lines: list[str] = []
    with http.stream("POST", "/v1/completions", json={**BODY, "stream": True}) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        for line in answer.iter_lines():
            lines.append(line)
            if lines.count(": keep-alive") == 3:
                engine.pause_at = None
    assert lines.count(": keep-alive") >= 3
    assert lines[-2] == "data: [DONE]"


def test_a_refusal_after_a_keep_alive_is_an_event(http: httpx.Client, engine: FakeEngine) -> None:
    engine.pause_at, engine.die_at = 0, 0
    with http.stream("POST", "/v1/completions", json={**BODY, "stream": True}) as answer:
        lines = []
        for line in answer.iter_lines():
            lines.append(line)
            engine.pause_at = None
    assert answer.status_code == 200
    assert '"code":"engine_unavailable"' in lines[-2]


def test_a_port_in_use_is_one_clear_error() -> None:
    with bind(port=0) as first:
        first.listen()
        port = first.getsockname()[1]
        with pytest.raises(ConfigError, match=f"port {port} on 127.0.0.1 is in use; choose another with"):
            bind(port=port)


def test_a_port_that_another_takes_while_we_load() -> None:
    with bind(port=0) as ours, bind(port=ours.getsockname()[1]) as theirs:
        theirs.listen()
        with pytest.raises(ConfigError, match="is in use"):
            asyncio.run(serve(lambda *_: None, listener=ours))


@pytest.mark.parametrize(
    ("host", "port", "words"),
    [
        ("127.0.0.1", 65536, "from 0 to 65535"),
        ("127.0.0.1", -1, "from 0 to 65535"),
        ("192.0.2.1", 0, "192.0.2.1"),
        ("no such host", 0, "no such host"),
    ],
)
def test_addresses_that_can_not_be_bound(host: str, port: int, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        bind(host, port)


@pytest.mark.parametrize("name", ["max_body_bytes", "keep_alive_seconds"])
def test_settings_are_checked(name: str) -> None:
    with pytest.raises(ConfigError, match=f"{name} is 0"):
        ServerSettings(**{name: 0})


def test_an_error_of_on_ready_stops_the_server() -> None:
    def fail(host: str, port: int) -> None:
        raise ConfigError(f"{host} is not what was wanted")

    threads = threading.active_count()
    with pytest.raises(ConfigError, match="not what was wanted"):
        asyncio.run(serve(lambda *_: None, port=0, on_ready=fail))
    assert threading.active_count() <= threads


SCRIPT = """
import asyncio, sys
sys.path.insert(0, {folder!r})
from server_fakes import FakeEngine, make_tokenizer
from ghostserve.server import create_app, serve
engine = FakeEngine(make_tokenizer())
engine.pause_at = 3
async def main():
    def ready(host, port):
        print(port, flush=True)
        asyncio.get_running_loop().call_later({pause}, setattr, engine, "pause_at", None)
    await serve(create_app(engine), port=0, on_ready=ready, drain_seconds=60)
    print("engine stopped", len(engine.aborted), flush=True)
asyncio.run(main())
"""


@pytest.mark.parametrize(("signals", "aborted"), [([signal.SIGTERM], 0), ([signal.SIGINT, signal.SIGTERM], 1)])
def test_a_signal_drains_then_stops(signals: list[signal.Signals], aborted: int) -> None:
    """One signal lets a running stream end; a second one cuts it. Code after `serve` runs in both cases."""
    pause = 2.0 if aborted == 0 else 60.0
    script = textwrap.dedent(SCRIPT.format(folder=os.path.dirname(__file__), pause=pause))
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        url = f"http://127.0.0.1:{process.stdout.readline().strip()}/v1/completions"
        lines: list[str] = []

        def read() -> None:
            with httpx.stream("POST", url, json={**BODY, "stream": True}, timeout=20) as answer:
                for line in answer.iter_lines():
                    if not lines:
                        for number in signals:
                            process.send_signal(number)
                    lines.append(line)

        if aborted:
            with pytest.raises(httpx.RemoteProtocolError):
                read()
        else:
            read()
            assert lines[-2] == "data: [DONE]"
        assert process.stdout.read().strip() == f"engine stopped {aborted}"
        assert process.wait(20) == 0
    with pytest.raises(httpx.ConnectError), httpx.Client() as client:
        client.get(url)
