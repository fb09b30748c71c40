"""The middleware on a Starlette app as vLLM builds its own, and behind vLLM's own middleware where it is installed."""

from argparse import Namespace
from pathlib import Path
from types import SimpleNamespace

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from starlette.testclient import TestClient
from statuses import make_status

from ghostserve.vllm.middleware import FaultToleranceMiddleware
from ghostserve.vllm.status_file import StatusPublisher

STATUS = "/v1/fault_tolerance/status"


async def echo(request: Request) -> Response:
    return PlainTextResponse(await request.body())


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "private" / "status.json"


@pytest.fixture
def app(path: Path) -> Starlette:
    app = Starlette(routes=[Route("/echo", echo, methods=["POST"])])
    app.add_middleware(FaultToleranceMiddleware)
    settings = {"ghostserve": {"status_path": str(path)}}
    app.state.vllm_config = SimpleNamespace(additional_config=settings, instance_id="1")
    return app


@pytest.mark.parametrize(("state", "code"), [("serving", 200), ("recovering", 503), ("failed", 503)])
def test_ready_follows_the_state(app: Starlette, path: Path, state: str, code: int) -> None:
    publisher = StatusPublisher(path)
    with TestClient(app) as http:
        publisher.publish(make_status(state))
        answer = http.get("/ready")
    assert (answer.status_code, answer.json()) == (code, {"state": state, "epoch": 2})
    assert answer.headers.get("retry-after") == ("1" if code == 503 else None)


def test_the_status_is_the_embedded_engines(app: Starlette, path: Path) -> None:
    StatusPublisher(path).publish(make_status())
    with TestClient(app) as http:
        answer = http.get(STATUS)
        assert http.post(STATUS).status_code == 405
    assert (answer.status_code, answer.headers["content-type"]) == (200, "application/json")
    status = answer.json()
    assert status["ranks"] == [{"rank": 0, "pid": 100, "state": "up"}, {"rank": 1, "pid": 101, "state": "lost"}]
    assert status["recoveries"][0]["phases"] == [["detected", 0.0], ["resumed", 1.5]]


def test_without_a_status_both_are_503_and_say_where_they_look(app: Starlette, path: Path) -> None:
    with TestClient(app) as http:
        for url in ("/ready", STATUS):
            answer = http.get(url)
            assert answer.status_code == 503
            assert str(path) in answer.json()["error"]["message"]


def test_everything_else_passes(app: Starlette) -> None:
    with TestClient(app) as http:
        assert http.post("/echo", content=b"body").text == "body"
        assert http.get("/v1/models").status_code == 404


def test_a_server_without_an_engine_gets_no_routes(app: Starlette) -> None:
    del app.state.vllm_config
    with TestClient(app) as http:
        assert http.get(STATUS).status_code == http.get("/ready").status_code == 404


@pytest.mark.parametrize("root_path", ["", "/behind/a/proxy"])
def test_vllms_api_key_guards_the_status(path: Path, root_path: str) -> None:
    pytest.importorskip("vllm")
    from fastapi import FastAPI
    from vllm.entrypoints.serve.middleware.register import init_entrypoints_middleware

    app = FastAPI(root_path=root_path)
    arguments = Namespace(
        allowed_origins=["*"], allow_credentials=False, allowed_methods=["*"], allowed_headers=["*"], api_key=["key"],
        enable_request_id_headers=False, middleware=["ghostserve.vllm.middleware.FaultToleranceMiddleware"],
    )  # fmt: skip
    init_entrypoints_middleware(arguments, app, ("generate",))
    settings = {"ghostserve": {"status_path": str(path)}}
    app.state.vllm_config = SimpleNamespace(additional_config=settings, instance_id="1")
    StatusPublisher(path).publish(make_status())
    with TestClient(app) as http:
        assert http.get(root_path + STATUS).status_code == 401
        assert http.get(root_path + STATUS, headers={"Authorization": "Bearer no"}).status_code == 401
        answer = http.get(root_path + STATUS, headers={"Authorization": "Bearer key"})
        assert (answer.status_code, answer.json()["epoch"]) == (200, 2)
        assert http.get(root_path + "/ready").status_code == 200
