"""Every class of bad input gets one clear error in OpenAI's shape, and the server goes on."""

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from server_fakes import MAX_MODEL_LEN, MODEL, FakeEngine

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
USER = {"role": "user", "content": "the"}


@pytest.fixture(autouse=True)
def _still_answers(http: httpx.Client, engine: FakeEngine) -> Iterator[None]:
    yield
    assert not engine.seen, "a bad request reached the engine"
    assert http.post(COMPLETIONS, json={"prompt": "the", "max_tokens": 2}).status_code == 200


def refused(answer: httpx.Response, status: int, *words: str, param: str | None = None) -> dict[str, Any]:
    error: dict[str, Any] = answer.json()["error"]
    assert answer.status_code == status, answer.text
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"
    assert [word for word in words if word not in error["message"]] == [], error["message"]
    assert error["param"] == param
    return error


@pytest.mark.parametrize(
    ("field", "value", "allowed"),
    [
        ("temperature", -0.1, "from 0 to 2"),
        ("temperature", 1e300, "from 0 to 2"),
        ("temperature", "hot", "Expected `float | null`"),
        ("top_p", 0, "above 0 and at most 1"),
        ("top_p", 1.01, "above 0 and at most 1"),
        ("top_k", -2, "-1 or 0 (off) or at least 1"),
        ("max_tokens", 0, "at least 1"),
        ("max_tokens", -5, "at least 1"),
        ("max_tokens", 10**9, "are left in a context of 512"),
        ("max_tokens", 1.5, "Expected `int | null`"),
        ("seed", -1, "from 0 to"),
        ("seed", 2**64, "from 0 to"),
        ("n", 0, "from 1 to 8"),
        ("n", 9, "from 1 to 8"),
        ("stop", ["a"] * 5, "at most 4"),
        ("stop", "", "must not be empty"),
        ("stop", ["a", "b" * 1025], "at most 1024"),
        ("stop_token_ids", [5] * 257, "at most 256"),
        ("stop", 7, "Expected `str | array | null`"),
        ("stop_token_ids", [-1], "0 to"),
        ("stream", "yes", "Expected `bool | null`"),
        ("stream_options", {"include_usage": True}, "only when stream is true"),
        ("frequency_penalty", 0.5, "not supported"),
        ("logit_bias", {"5": 1}, "not supported"),
        ("best_of", 3, "not supported"),
    ],
)
@pytest.mark.parametrize("path", [COMPLETIONS, CHAT])
def test_fields(http: httpx.Client, path: str, field: str, value: object, allowed: str) -> None:
    body = {"model": MODEL, "prompt": "the", "messages": [USER], field: value}
    answer = http.post(path, json=body)
    error = refused(answer, 400, field, allowed, param=field)
    if not isinstance(value, list | dict | float):
        assert json.dumps(value) in error["message"] or field == "stop"


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        ("", ['""', "at least one token"]),
        ([], ["must not be empty"]),
        ([[]], ["at least one token"]),
        (["the", ""], ["at least one token"]),
        (["the", 5], ["only strings, only token ids"]),
        ([5, -1], ["-1", "vocabulary"]),
        ([5, 10**6], ["1000000", "vocabulary"]),
        ([[5], [2**70]], [str(2**70), "vocabulary"]),
        (["the"] * 9, ["9 prompts", "at most 8"]),
        ([5] * MAX_MODEL_LEN, [f"has {MAX_MODEL_LEN} tokens", "at most 511"]),
    ],
)
def test_prompts(http: httpx.Client, prompt: object, words: list[str]) -> None:
    refused(http.post(COMPLETIONS, json={"prompt": prompt}), 400, *words, param="prompt")


@pytest.mark.parametrize("prompt", [None, True, {"a": 1}, 5.5])
def test_prompts_of_a_wrong_type(http: httpx.Client, prompt: object) -> None:
    refused(http.post(COMPLETIONS, json={"prompt": prompt}), 400, "Expected `str | array`", param="prompt")


@pytest.mark.parametrize(("field", "value"), [("echo", True), ("suffix", "end"), ("logprobs", 21), ("logprobs", -1)])
def test_completion_fields(http: httpx.Client, field: str, value: object) -> None:
    refused(http.post(COMPLETIONS, json={"prompt": "the", field: value}), 400, field, param=field)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("tools", [{"type": "function", "function": {"name": "f"}}]),
        ("tool_choice", "required"),
        ("response_format", {"type": "json_object"}),
        ("modalities", ["text", "audio"]),
        ("top_logprobs", 3),
        ("max_completion_tokens", 1000),
    ],
)
def test_chat_fields(http: httpx.Client, field: str, value: object) -> None:
    refused(http.post(CHAT, json={"messages": [USER], field: value}), 400, field, param=field)


@pytest.mark.parametrize(
    ("messages", "param"),
    [
        ([], "messages"),
        ([{"role": "user", "content": "refuse me"}], "messages"),
        ([{"role": "user", "content": "the ghost " * 500}], "messages"),
        ([{"role": "wizard", "content": "the"}], "messages[0].role"),
        ([{"role": "tool", "content": "the"}], "messages[0].role"),
        ([USER, {"role": "assistant", "content": None}], "messages[1].content"),
        ([{"role": "assistant", "tool_calls": [{"id": "x"}]}], "messages[0].tool_calls"),
        (
            [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}],
            "messages[0].content[0]",
        ),
        (["the"], "messages[0]"),
        ([{"role": "user", "content": 5}], "messages[0].content"),
        ("the", "messages"),
    ],
)
def test_messages(http: httpx.Client, messages: object, param: str) -> None:
    refused(http.post(CHAT, json={"messages": messages}), 400, param, param=param)


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b'{"prompt": "a"} x', b'{"prompt": "\xff"}', b'{"prompt": "a", "top_p": NaN}', b"[" * 9000],
)
def test_malformed_json(http: httpx.Client, body: bytes) -> None:
    refused(http.post(COMPLETIONS, content=body), 400, "not valid JSON")


@pytest.mark.parametrize("body", [b"[]", b"null", b'"the"', b"{}"])
def test_json_that_is_no_request(http: httpx.Client, body: bytes) -> None:
    refused(http.post(COMPLETIONS, content=body), 400, "bject")


def test_a_number_that_no_float_holds(http: httpx.Client) -> None:
    answer = http.post(COMPLETIONS, content=b'{"prompt": "a", "temperature": 1e999}')
    refused(answer, 400, "temperature: Number out of range", param="temperature")


def test_json_nested_too_deeply(http: httpx.Client) -> None:
    body = b'{"prompt": "a", "logit_bias": ' + b"[" * 9000
    assert http.post(COMPLETIONS, content=body).status_code == 400


def test_unknown_model(http: httpx.Client) -> None:
    answer = http.post(COMPLETIONS, json={"model": "gpt-9", "prompt": "the"})
    error = refused(answer, 404, '"gpt-9"', '"tiny"', param="model")
    assert error["code"] == "model_not_found"


def test_a_huge_value_is_cut_in_the_message(http: httpx.Client) -> None:
    answer = http.post(COMPLETIONS, json={"prompt": "a", "model": "x" * 10_000})
    assert len(refused(answer, 404, '"xxx', "...", param="model")["message"]) < 300


@pytest.mark.parametrize("size", [20_001, 60_000, 200_000])
def test_a_huge_body(http: httpx.Client, size: int) -> None:
    answer = http.post(COMPLETIONS, content=b'{"prompt": "' + b"a" * size)
    assert refused(answer, 413, "20000")["code"] == "request_too_large"


def test_a_huge_body_without_a_length(http: httpx.Client) -> None:
    answer = http.post(COMPLETIONS, content=(b"a" * 1000 for _ in range(60)))
    refused(answer, 413, "20000")


def test_unknown_path_and_wrong_method(http: httpx.Client) -> None:
    assert refused(http.get("/v2/models"), 404, "/v2/models")["code"] == "not_found"
    refused(http.post(COMPLETIONS + "/", json={}), 404, COMPLETIONS)
    answer = http.get(COMPLETIONS)
    assert refused(answer, 405, "POST")["code"] == "method_not_allowed"
    assert answer.headers["allow"] == "POST"
    refused(http.delete("/health"), 405, "GET")
