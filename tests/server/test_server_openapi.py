"""The API as it describes itself, and hundreds of requests made from that: no 5xx, no hang, nothing left behind."""

import os
import threading
from collections.abc import Callable, Iterator

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from running_server import SETTINGS, RunningServer
from schemathesis.checks import (
    CHECKS,
    not_a_server_error,
)
from server_fakes import FakeEngine

from ghostserve.server.openapi import describe_api

Eventually = Callable[[Callable[[], object]], None]
SCHEMA = schemathesis.openapi.from_dict(describe_api(guarded=False))
OPERATIONS = {f"{one.method.upper()} {one.path}": one for one in (found.ok() for found in SCHEMA.get_all_operations())}
MODES = {"valid": schemathesis.GenerationMode.POSITIVE, "invalid": schemathesis.GenerationMode.NEGATIVE}
ANSWERED = [
    not_a_server_error,
    CHECKS.get_one("status_code_conformance"),
    CHECKS.get_one("content_type_conformance"),
    CHECKS.get_one("response_schema_conformance"),
]


@pytest.fixture(scope="module")
def described(_engine: FakeEngine) -> Iterator[RunningServer]:
    """A server of this module's own; when all requests are over, it holds no more than before them."""
    with RunningServer(_engine, SETTINGS) as running:
        httpx.get(f"{running.url}/version")
        yield running


def examples(operation: str) -> int:
    return 150 if operation.startswith("POST") else 10


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("operation", OPERATIONS)
def test_requests_made_from_the_description(
    described: RunningServer, engine: FakeEngine, eventually: Eventually, operation: str, mode: str
) -> None:
    found = OPERATIONS[operation]
    if mode == "invalid" and not operation.startswith("POST"):
        pytest.skip("nothing in it can be invalid")
    before = len(os.listdir("/proc/self/fd")), threading.active_count()
    codes: set[int] = set()

    @settings(
        max_examples=examples(operation),
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=found.as_strategy(generation_mode=MODES[mode]))
    def ask(case: schemathesis.Case) -> None:
        answer = case.call(base_url=described.url, timeout=10)
        case.validate_response(answer, checks=ANSWERED)
        codes.add(answer.status_code)

    ask()
    eventually(lambda: not engine.running)
    # A connection that a client has closed is gone a moment later.
    eventually(lambda: len(os.listdir("/proc/self/fd")) <= before[0] + 1)
    assert threading.active_count() <= before[1] + 12, "the pool that requests are tokenised in, and no more"
    assert codes <= {200, 400, 404, 405, 413}
    if mode == "valid" and "{" not in operation:
        assert 200 in codes, "no valid request was understood: the test has tested nothing"
    if mode == "invalid":
        assert 400 in codes


def test_a_server_error_would_be_found(described: RunningServer, engine: FakeEngine) -> None:
    """The twin: an engine with a bug."""
    engine.bug_at = 0
    case = OPERATIONS["POST /v1/completions"].Case(
        body={"prompt": "the", "max_tokens": 2}, media_type="application/json"
    )
    answer = case.call(base_url=described.url, timeout=10)
    assert answer.status_code == 500
    with pytest.raises(schemathesis.core.failures.FailureGroup):
        case.validate_response(answer, checks=ANSWERED)


def test_it_is_served_and_whole(http: httpx.Client, engine: FakeEngine) -> None:
    served = http.get("/openapi.json").json()
    assert served == describe_api(guarded=False)
    assert served["paths"].keys() == {one.split(" ")[1] for one in OPERATIONS}
    fields = served["components"]["schemas"]["CompletionRequest"]["properties"]
    assert fields["best_of"] == {"enum": [None, 1]}, "what is not implemented is not described as if it were"
    assert {"prompt", "max_tokens", "stop", "logprobs", "stream"} <= fields.keys()


def test_keys_are_described_where_they_are_needed() -> None:
    paths = describe_api(guarded=True)["paths"]
    open_ones = {path for path, methods in paths.items() if not all("security" in one for one in methods.values())}
    assert open_ones == {"/health", "/ready", "/metrics"}
