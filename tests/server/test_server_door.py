"""The front door: keys, how many may come in, how large and how deep a request may be, how long a recovery may take."""

import contextlib
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import openai
import pytest
from running_server import SETTINGS, RunningServer
from server_fakes import FakeEngine

from ghostserve.errors import ConfigError
from ghostserve.server import bind, create_app
from ghostserve.server.admission import Admission
from ghostserve.server.gate import ApiKeys

Eventually = Callable[[Callable[[], object]], None]
BODY = {"prompt": "the", "max_tokens": 4}
KEYS = ("first-key", "second-key")
STRANGERS = [
    {},
    {"Authorization": "Bearer third-key"},
    {"Authorization": "Bearer first-ke"},
    {"Authorization": "Bearer first-key2"},
    {"Authorization": "Bearer"},
    {"Authorization": "Basic first-key"},
    {"Authorization": "first-key"},
    {"Authorization": "Bearer first-key, Bearer second-key"},
    {"X-API-Key": "first-key"},
]


@pytest.fixture(scope="module")
def guarded(_engine: FakeEngine) -> Iterator[httpx.Client]:
    with (
        RunningServer(_engine, SETTINGS, KEYS) as running,
        httpx.Client(base_url=running.url, timeout=20) as client,
    ):
        yield client


# ---- keys


@pytest.mark.parametrize("headers", STRANGERS)
@pytest.mark.parametrize("path", ["/v1/completions", "/v1/models", "/v1/fault_tolerance/status", "/version", "/none"])
def test_without_a_key_nothing_is_served(
    guarded: httpx.Client, engine: FakeEngine, path: str, headers: dict[str, str]
) -> None:
    method = "POST" if path == "/v1/completions" else "GET"
    answer = guarded.request(method, path, headers=headers, json=BODY if method == "POST" else None)
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == "Bearer"
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert (error["type"], error["code"]) == ("invalid_request_error", "invalid_api_key")
    assert not any(key in answer.text for key in KEYS)
    assert not engine.seen


def test_two_keys_at_once_are_none(guarded: httpx.Client) -> None:
    both = [("Authorization", f"Bearer {key}") for key in KEYS]
    assert guarded.get("/v1/models", headers=both).status_code == 401


@pytest.mark.parametrize("key", KEYS)
def test_each_key_opens(guarded: httpx.Client, engine: FakeEngine, key: str) -> None:
    assert guarded.post("/v1/completions", json=BODY, headers={"Authorization": f"bearer {key}"}).status_code == 200
    with openai.OpenAI(base_url=f"{guarded.base_url}/v1", api_key=key, max_retries=0) as client:
        assert client.models.list().data[0].id == "tiny"
    with (
        openai.OpenAI(base_url=f"{guarded.base_url}/v1", api_key="other", max_retries=0) as client,
        pytest.raises(openai.AuthenticationError),
    ):
        client.models.list()


@pytest.mark.parametrize("path", ["/health", "/ready", "/metrics"])
def test_probes_need_no_key(guarded: httpx.Client, engine: FakeEngine, path: str) -> None:
    assert guarded.get(path).status_code == 200


@pytest.mark.parametrize("path", ["/health/", "//health", "/health/../v1/models", "/metrics%2f..%2fv1/models"])
def test_only_those_paths_are_open(guarded: httpx.Client, path: str) -> None:
    assert guarded.get(path).status_code == 401


def test_a_server_without_keys_asks_for_none(http: httpx.Client, engine: FakeEngine) -> None:
    assert http.get("/v1/models", headers={"Authorization": "Bearer whatever"}).status_code == 200


@pytest.mark.parametrize("key", ["", " ", "a b", "naïve", "line\n"])
def test_a_key_that_no_header_carries_is_refused_and_not_shown(key: str) -> None:
    with pytest.raises(ConfigError, match="API key 2 is empty or has characters") as error:
        ApiKeys(["good-key", key])
    assert "good-key" not in str(error.value)


def test_every_key_is_compared_whichever_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Constant time: no early end, and digests of one length are what is compared."""
    compared: list[tuple[int, int]] = []

    def compare(a: bytes, b: bytes) -> bool:
        compared.append((len(a), len(b)))
        return a == b

    monkeypatch.setattr("ghostserve.server.gate.hmac.compare_digest", compare)
    keys = ApiKeys(["a", "bb", "ccc"])
    assert [keys.accepts(value) for value in (b"Bearer a", b"Bearer nothing like it", None)] == [True, False, False]
    assert compared == [(32, 32)] * 9


# ---- how many


def hold(client: httpx.Client, engine: FakeEngine, count: int, sent: list[int]) -> list[threading.Thread]:
    """Start `count` requests that stay in the engine."""

    def post() -> None:
        sent.append(client.post("/v1/completions", json=BODY).status_code)

    threads = [threading.Thread(target=post) for _ in range(count)]
    for thread in threads:
        thread.start()
    return threads


@pytest.mark.parametrize("stream", [False, True])
def test_a_full_house_is_429_and_opens_again(
    http: httpx.Client, engine: FakeEngine, eventually: Eventually, stream: bool
) -> None:
    engine.pause_at = 1
    sent: list[int] = []
    threads = hold(http, engine, engine.max_sequences - 2, sent)
    eventually(lambda: len(engine.running) == engine.max_sequences - 2)
    answer = http.post("/v1/completions", json={**BODY, "n": 3, "stream": stream})
    assert answer.status_code == 429
    assert answer.headers["retry-after"] == "1"
    error = answer.json()["error"]
    assert (error["type"], error["code"]) == ("rate_limit_error", "too_many_requests")
    assert "14 sequences" in error["message"]
    assert "at most 16" in error["message"]
    assert len(engine.seen) == 14, "what was refused never reached the engine"
    assert http.get("/health").status_code == http.get("/metrics").status_code == 200
    threads += hold(http, engine, 2, sent)  # what fits does come in
    eventually(lambda: len(engine.running) == 16)
    assert http.post("/v1/completions", json={**BODY, "stream": stream}).status_code == 429
    engine.pause_at = None
    for thread in threads:
        thread.join(20)
    assert sent == [200] * 16
    assert http.post("/v1/completions", json={**BODY, "n": 8, "stream": stream}).status_code == 200


def test_a_door_that_counts_too_far_lets_everybody_in(
    http: httpx.Client, engine: FakeEngine, eventually: Eventually
) -> None:
    """The twin: what refuses is the count at the door."""
    engine.max_sequences = 1000
    engine.pause_at = 1
    sent: list[int] = []
    try:
        threads = hold(http, engine, 17, sent)
        eventually(lambda: len(engine.running) == 17)
    finally:
        del engine.max_sequences
        engine.pause_at = None
    for thread in threads:
        thread.join(20)
    assert sent == [200] * 17


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("end", ["refusal", "death", "bug", "gone"])
def test_every_end_gives_its_place_back(
    http: httpx.Client, engine: FakeEngine, eventually: Eventually, stream: bool, end: str
) -> None:
    """More requests than there are places, each ended in the same bad way: then the house is empty."""
    body = {**BODY, "n": 8, "stream": stream}
    with httpx.Client(base_url=http.base_url, timeout=0.2 if end == "gone" else 20) as client:
        for _ in range(5):
            if end == "refusal":
                engine.state = "failed"
            elif end == "death":
                engine.die_at = 2
            elif end == "bug":
                engine.bug_at = 2
            else:
                engine.pause_at = 2
            if end == "gone" and stream:
                with client.stream("POST", "/v1/completions", json=body) as got:
                    assert got.status_code == 200  # and leave
            elif end == "gone":
                with pytest.raises(httpx.ReadTimeout):
                    client.post("/v1/completions", json=body)
            else:
                with contextlib.suppress(httpx.RemoteProtocolError):  # a stream that a bug has cut off
                    assert client.post("/v1/completions", json=body).status_code in (200, 500, 503)
            eventually(lambda: not engine.running)
    engine.reset()
    answers = [http.post("/v1/completions", json={**BODY, "n": 8}).status_code for _ in range(2)]
    assert answers == [200, 200]
    with ThreadPoolExecutor(2) as pool:  # both halves of the house at once
        engine.pause_at = 1
        both = [pool.submit(http.post, "/v1/completions", json={**BODY, "n": 8}) for _ in range(2)]
        eventually(lambda: len(engine.running) == 16)
        engine.pause_at = None
        assert [one.result().status_code for one in both] == [200, 200]


def test_a_ticket_is_given_back_once(engine: FakeEngine) -> None:
    admission = Admission(engine, SETTINGS)
    first, second = admission.admit(3), admission.admit(4)
    first.release()
    first.release()
    assert admission.sequences == 4
    second.release()
    assert admission.sequences == 0


def test_more_than_the_house_holds_is_not_worth_a_retry(http: httpx.Client, engine: FakeEngine) -> None:
    engine.max_sequences = 4
    try:
        answer = http.post("/v1/completions", json={**BODY, "n": 5})
    finally:
        del engine.max_sequences
    assert answer.status_code == 400
    assert "retry-after" not in answer.headers


# ---- how long


def test_a_recovery_that_takes_too_long_is_503(http: httpx.Client, engine: FakeEngine) -> None:
    engine.state = "recovering"
    engine.recovering_seconds = SETTINGS.recovery_patience - 1
    assert http.post("/v1/completions", json=BODY).status_code == 200, "a short one is only a pause"
    engine.recovering_seconds = SETTINGS.recovery_patience + 5
    answer = http.post("/v1/completions", json=BODY)
    assert answer.status_code == 503
    assert answer.headers["retry-after"] == "1"
    assert answer.json()["error"]["code"] == "recovering"
    assert http.get("/health").status_code == 200, "a restart would not help"
    engine.state = "serving"
    assert http.post("/v1/completions", json=BODY).status_code == 200


# ---- how large, how deep


def nested(depth: int) -> bytes:
    return b'{"prompt": "a", "max_tokens": 1, "unknown": ' + b"[" * (depth - 1) + b"]" * (depth - 1) + b"}"


def test_nesting(http: httpx.Client, engine: FakeEngine) -> None:
    assert http.post("/v1/completions", content=nested(64)).status_code == 200
    answer = http.post("/v1/completions", content=nested(65))
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_json")
    assert "nested deeper than 64" in answer.json()["error"]["message"]


@pytest.mark.parametrize("text", ['[[["' * 60, "\\" * 61 + '"' + "[{" * 99, "{" * 200])
def test_brackets_in_strings_are_no_nesting(http: httpx.Client, engine: FakeEngine, text: str) -> None:
    assert http.post("/v1/completions", json={**BODY, "prompt": text}).status_code == 200


@pytest.mark.parametrize("field", ["logit_bias", "structured_outputs", "unknown"])
def test_a_deep_value_of_a_field_that_may_be_anything(http: httpx.Client, engine: FakeEngine, field: str) -> None:
    deep = '{"a": ' * 2000 + "1" + "}" * 2000
    answer = http.post("/v1/completions", content=f'{{"prompt": "a", "{field}": {deep}}}')
    assert answer.status_code == 400


def test_many_headers_are_431(http: httpx.Client, engine: FakeEngine) -> None:
    headers = {f"x-{i}": "1" for i in range(SETTINGS.h11_max_header_count)}
    answer = http.get("/v1/models", headers=headers)
    assert answer.status_code == 431
    assert f"at most {SETTINGS.h11_max_header_count}" in answer.json()["error"]["message"]
    assert http.get("/v1/models", headers=dict(list(headers.items())[:200])).status_code == 200


@pytest.mark.parametrize("size", [SETTINGS.h11_max_incomplete_event_size, 4 << 20])
def test_a_huge_header_is_refused(http: httpx.Client, engine: FakeEngine, size: int) -> None:
    """By us where it came in one piece, else by uvicorn as soon as too much has come."""
    with contextlib.suppress(httpx.WriteError, httpx.ReadError):  # it is not read to its end
        assert http.get("/v1/models", headers={"x-big": "a" * size}).status_code in (400, 431)
    assert http.get("/v1/models").status_code == 200


# ---- what is not there


def test_loopback_unless_told() -> None:
    with bind(port=0) as listener:
        assert listener.getsockname()[0] == "127.0.0.1"


def test_there_is_no_endpoint_that_breaks_anything(engine: FakeEngine) -> None:
    """Faults are put in by failpoints, which need an environment variable and a folder: never over HTTP."""
    routes = {(route.path, *sorted(route.methods - {"HEAD"})) for route in create_app(engine).routes}
    assert routes == {
        ("/v1/models", "GET"),
        ("/v1/models/{model:path}", "GET"),
        ("/v1/completions", "POST"),
        ("/v1/chat/completions", "POST"),
        ("/v1/fault_tolerance/status", "GET"),
        ("/health", "GET"),
        ("/ready", "GET"),
        ("/metrics", "GET"),
        ("/version", "GET"),
        ("/openapi.json", "GET"),
    }
