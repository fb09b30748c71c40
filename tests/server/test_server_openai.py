"""The official `openai` client against a real server."""

import openai
import pytest
from server_fakes import MAX_MODEL_LEN, MODEL, FakeEngine

from ghostserve.errors import RequestError

MESSAGES = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "the ghost"}]


def decode(engine: FakeEngine, ids: list[int]) -> str:
    return engine.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)


def test_models(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == [MODEL]
    assert client.models.retrieve(MODEL).id == MODEL
    with pytest.raises(openai.NotFoundError, match='"other"'):
        client.models.retrieve("other")


@pytest.mark.parametrize("stream", [False, True])
def test_completion_gives_the_engines_tokens(client: openai.OpenAI, engine: FakeEngine, stream: bool) -> None:
    result = client.completions.create(
        model=MODEL,
        prompt="the quick",
        max_tokens=30,
        seed=5,
        stream=stream,
        extra_body={"return_token_ids": True},
        **({"stream_options": {"include_usage": True}} if stream else {}),
    )
    answers = list(result) if stream else [result]
    choices = [choice for answer in answers for choice in answer.choices]
    _, prompt, params = engine.seen[0]
    assert prompt == engine.tokenizer.encode("the quick")
    ids = engine.tokens(prompt, params)
    assert [token for choice in choices for token in choice.token_ids] == ids
    assert "".join(choice.text for choice in choices) == decode(engine, ids)
    assert choices[0].prompt_token_ids == prompt
    assert [choice.finish_reason for choice in choices if choice.finish_reason] == ["length"]
    assert answers[-1].usage.completion_tokens == 30
    assert answers[-1].usage.total_tokens == 30 + len(prompt)
    assert all(answer.usage is None for answer in answers[:-1])
    assert params.seed == 5
    assert not engine.aborted


@pytest.mark.parametrize("stream", [False, True])
def test_chat_gives_the_engines_tokens(client: openai.OpenAI, engine: FakeEngine, stream: bool) -> None:
    result = client.chat.completions.create(
        model=MODEL, messages=MESSAGES, max_completion_tokens=25, temperature=0, top_p=0.5, stream=stream,
        extra_body={"top_k": 7, "return_token_ids": True, "ignore_eos": True},
    )  # fmt: skip
    _, prompt, params = engine.seen[0]
    if stream:
        chunks = list(result)
        assert chunks[0].choices[0].delta.role == "assistant"
        assert chunks[0].prompt_token_ids == prompt
        text = "".join(chunk.choices[0].delta.content for chunk in chunks)
        ids = [token for chunk in chunks for token in getattr(chunk.choices[0], "token_ids", [])]
        assert chunks[-1].choices[0].finish_reason == "length"
    else:
        message = result.choices[0].message
        assert (message.role, result.usage.completion_tokens) == ("assistant", 25)
        text, ids = message.content, result.choices[0].token_ids
    assert ids == engine.tokens(prompt, params)
    assert text == decode(engine, ids)
    assert engine.tokenizer.decode(prompt).endswith("the ghost<|im_end|>\n<|im_start|>assistant\n")
    assert (params.temperature, params.top_p, params.top_k, params.ignore_eos) == (0, 0.5, 7, True)


def test_text_parts_and_the_developer_role(client: openai.OpenAI, engine: FakeEngine) -> None:
    parts = [{"type": "text", "text": "the"}, {"type": "text", "text": "fox"}]
    messages = [{"role": "developer", "content": "be brief"}, {"role": "user", "content": parts}]
    client.chat.completions.create(model=MODEL, messages=messages, max_tokens=1)
    text = engine.tokenizer.decode(engine.seen[0][1])
    assert text.startswith("<|im_start|>system\nbe brief<|im_end|>\n<|im_start|>user\nthe\nfox<|im_end|>")


def test_default_max_tokens(client: openai.OpenAI, engine: FakeEngine) -> None:
    client.completions.create(model=MODEL, prompt="the")
    client.completions.create(model=MODEL, prompt=[5] * (MAX_MODEL_LEN - 3))
    client.chat.completions.create(model=MODEL, messages=MESSAGES)
    lengths = [(len(prompt), params.max_tokens) for _, prompt, params in engine.seen]
    assert [most for _, most in lengths[:2]] == [16, 3]
    assert sum(lengths[2]) == MAX_MODEL_LEN


@pytest.mark.parametrize("stream", [False, True])
def test_stop_strings_across_tokens(client: openai.OpenAI, engine: FakeEngine, stream: bool) -> None:
    engine.script = engine.tokenizer.encode("the lazy dog. the ghost keeps ") * 4
    result = client.completions.create(
        model=MODEL, prompt="x", max_tokens=50, stop=["g. the gh", "never"], stream=stream
    )
    pieces = [choice for answer in (result if stream else [result]) for choice in answer.choices]
    assert "".join(piece.text for piece in pieces) == "the lazy do"
    assert (pieces[-1].finish_reason, pieces[-1].stop_reason) == ("stop", "g. the gh")
    assert len(engine.aborted) == 1  # a stop string ends the request in the engine too


def test_eos_ends_the_text_and_counts(client: openai.OpenAI, engine: FakeEngine) -> None:
    eos = engine.tokenizer.eos_token_id
    engine.script = [*engine.tokenizer.encode("the fox"), eos, 9, 9]
    result = client.completions.create(model=MODEL, prompt="x", max_tokens=50, extra_body={"return_token_ids": True})
    choice = result.choices[0]
    assert (choice.text, choice.finish_reason, choice.token_ids[-1]) == ("the fox", "stop", eos)
    assert result.usage.completion_tokens == len(engine.script) - 2
    result = client.completions.create(
        model=MODEL, prompt="x", max_tokens=50, extra_body={"stop_token_ids": [engine.script[1]]}
    )
    assert result.choices[0].stop_reason == engine.script[1]
    assert result.choices[0].text == decode(engine, engine.script[:1])


@pytest.mark.parametrize("stream", [False, True])
def test_many_prompts_and_samples(client: openai.OpenAI, engine: FakeEngine, stream: bool) -> None:
    result = client.completions.create(model=MODEL, prompt=["the", "fox"], n=2, seed=3, max_tokens=6, stream=stream)
    texts = dict.fromkeys(range(4), "")
    for answer in result if stream else [result]:
        for choice in answer.choices:
            texts[choice.index] += choice.text
    expected = sorted(engine.seen, key=lambda call: call[0])
    assert list(texts.values()) == [decode(engine, engine.tokens(p, s)) for _, p, s in expected]
    assert [params.seed for _, _, params in expected] == [3, 4, 3, 4]
    if not stream:
        assert result.usage.prompt_tokens == sum(len(engine.tokenizer.encode(p)) for p in ("the", "fox"))


def test_prompts_of_token_ids(client: openai.OpenAI, engine: FakeEngine) -> None:
    client.completions.create(model=MODEL, prompt=[[5, 6], [7]], max_tokens=1)
    client.completions.create(model=MODEL, prompt=[8, 9], max_tokens=1)
    assert sorted(prompt for _, prompt, _ in engine.seen) == [[5, 6], [7], [8, 9]]


@pytest.mark.parametrize("stream", [False, True])
def test_logprobs(client: openai.OpenAI, engine: FakeEngine, stream: bool) -> None:
    result = client.completions.create(model=MODEL, prompt="x", max_tokens=9, logprobs=3, stream=stream)
    parts = [choice.logprobs for answer in (result if stream else [result]) for choice in answer.choices]
    assert [value for part in parts for value in part.token_logprobs] == [-0.5] * 9
    assert min(parts[0].top_logprobs[0].values()) == -9999.0
    assert parts[0].text_offset[0] == 0
    result = client.chat.completions.create(
        model=MODEL, messages=MESSAGES, max_tokens=9, logprobs=True, top_logprobs=2, stream=stream
    )
    answers = list(result) if stream else [result]
    content = [token for a in answers for c in a.choices if c.logprobs for token in c.logprobs.content]
    _, prompt, params = engine.seen[-1]
    ids = engine.tokens(prompt, params)
    raw = bytes(byte for token in content for byte in token.bytes)
    assert raw.decode(errors="replace") == decode(engine, ids)
    assert all(len(token.top_logprobs) == 2 for token in content)


def test_a_stream_survives_a_pause_byte_by_byte(client: openai.OpenAI, engine: FakeEngine) -> None:
    engine.pause_at = 4
    chunks = client.completions.create(model=MODEL, prompt="the", max_tokens=10, stream=True)
    text = ""
    for number, chunk in enumerate(chunks):
        text += chunk.choices[0].text
        if number == 0:
            engine.pause_at = None
    _, prompt, params = engine.seen[0]
    assert text == decode(engine, engine.tokens(prompt, params))


def test_an_engine_that_dies_ends_the_stream_with_an_error(client: openai.OpenAI, engine: FakeEngine) -> None:
    engine.die_at = 4
    chunks = client.completions.create(model=MODEL, prompt="the", max_tokens=10, stream=True)
    with pytest.raises(openai.APIError, match="the engine is dead"):
        list(chunks)
    with pytest.raises(openai.InternalServerError, match="the engine is dead") as caught:
        client.completions.create(model=MODEL, prompt="the", max_tokens=10)
    assert (caught.value.status_code, caught.value.code) == (503, "engine_unavailable")
    assert caught.value.response.headers["retry-after"] == "1"


def test_a_bug_is_not_shown(client: openai.OpenAI, engine: FakeEngine) -> None:
    engine.bug_at = 0
    with pytest.raises(openai.InternalServerError) as caught:
        client.completions.create(model=MODEL, prompt="the")
    assert "secret" not in str(caught.value)
    engine.bug_at = 4
    with pytest.raises(openai.APIError, match="the server failed"):
        list(client.completions.create(model=MODEL, prompt="the", stream=True))


@pytest.mark.parametrize("stream", [False, True])
def test_what_the_engine_refuses_has_its_status(client: openai.OpenAI, engine: FakeEngine, stream: bool) -> None:
    engine.refusal = RequestError("the queue is full: 10 of 10 wait", status=503)
    with pytest.raises(openai.InternalServerError, match="queue is full") as caught:
        client.completions.create(model=MODEL, prompt="the", stream=stream)
    assert caught.value.status_code == 503
    engine.refusal = RequestError("prompt is bad", param="prompt")
    with pytest.raises(openai.BadRequestError) as refused:
        client.completions.create(model=MODEL, prompt="the", stream=stream)
    assert refused.value.param == "prompt"
