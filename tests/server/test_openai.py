"""What OpenAI's own client gets."""

from __future__ import annotations

import concurrent.futures
import json
import math
from typing import Any

import httpx
import openai
import pytest

from bitttt_jax.inference.engine import Engine
from bitttt_jax.inference.requests import Request
from bitttt_jax.inference.sampling import SamplingConfig
from tests.server import live as live_server
from tests.server.live import NAME, Live

PROMPT = "It was a dark"


def expected(prompt: str = PROMPT, **values: Any) -> Any:
    """The reply of the engine alone."""
    model = live_server.model()
    tokens = [model.tokenizer.bos_id, *prompt.encode()]
    values = {"max_tokens": 12, "sampling": SamplingConfig(temperature=0)} | values
    request = Request(tokens, stop_ids=model.tokenizer.stop_ids, **values)
    return Engine(model).run([request])[0].result()


def complete(client: openai.OpenAI, prompt: Any = PROMPT, **values: Any) -> Any:
    values = {"max_tokens": 12, "temperature": 0, "model": NAME} | values
    return client.completions.create(prompt=prompt, **values)


def chat(client: openai.OpenAI, **values: Any) -> Any:
    values = {"max_tokens": 8, "temperature": 0, "model": NAME} | values
    messages = [{"role": "system", "content": "be kind"}, {"role": "user", "content": "hello"}]
    return client.chat.completions.create(**({"messages": messages} | values))


def test_models(client: openai.OpenAI):
    assert [model.id for model in client.models.list()] == [NAME]
    assert client.models.retrieve(NAME).owned_by == "bitttt"
    with pytest.raises(openai.NotFoundError, match="there is no such model here"):
        client.models.retrieve("gpt-4")


def test_a_completion_is_the_engine_s(client: openai.OpenAI):
    found, alone = complete(client), expected()
    assert found.choices[0].text == alone.text
    assert found.choices[0].finish_reason == alone.finish_reason
    assert found.usage.prompt_tokens == len(PROMPT) + 1
    assert found.usage.completion_tokens == len(alone.tokens)
    assert found.usage.total_tokens == found.usage.prompt_tokens + found.usage.completion_tokens


@pytest.mark.parametrize("prompt", [[65, 66, 67], [[65, 66, 67]], ["ABC"]])
def test_prompts_in_all_forms(client: openai.OpenAI, prompt: Any):
    tokens = complete(client, prompt).usage.prompt_tokens
    assert tokens == (4 if prompt == ["ABC"] else 3)


def test_a_stream_makes_the_same_text(client: openai.OpenAI):
    whole = complete(client, max_tokens=40)
    chunks = list(complete(client, max_tokens=40, stream=True))
    assert "".join(chunk.choices[0].text for chunk in chunks) == whole.choices[0].text
    assert len(chunks) > 1
    reasons = [chunk.choices[0].finish_reason for chunk in chunks]
    assert reasons == [None] * (len(chunks) - 1) + [whole.choices[0].finish_reason]
    assert len({chunk.id for chunk in chunks}) == 1
    assert {chunk.usage for chunk in chunks} == {None}


def test_usage_comes_last_where_asked_for(client: openai.OpenAI):
    *chunks, last = complete(client, stream=True, stream_options={"include_usage": True})
    assert last.choices == []
    assert last.usage == complete(client).usage.model_copy(
        update={"prompt_tokens_details": last.usage.prompt_tokens_details}
    )
    assert all(chunk.usage is None and chunk.choices for chunk in chunks)


def test_chat(client: openai.OpenAI):
    whole = chat(client)
    alone = complete(client, "s:be kind\nu:hello\na:", max_tokens=8)
    assert whole.choices[0].message.content == alone.choices[0].text
    assert whole.choices[0].message.role == "assistant"
    first, *chunks = chat(client, stream=True)
    assert first.choices[0].delta.role == "assistant"
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert text == whole.choices[0].message.content
    assert chunks[-1].choices[0].finish_reason == whole.choices[0].finish_reason


def test_the_stream_helper_of_the_client(client: openai.OpenAI):
    text = chat(client).choices[0].message.content
    messages = [{"role": "system", "content": "be kind"}, {"role": "user", "content": "hello"}]
    with client.chat.completions.stream(
        model=NAME, messages=messages, max_tokens=8, temperature=0, stop=text[4:6]
    ) as stream:
        final = stream.get_final_completion()
    assert final.choices[0].message.content == text[:4]


def test_messages_in_parts_and_other_names(client: openai.OpenAI):
    parts = [{"type": "text", "text": "hel"}, {"type": "text", "text": "lo"}]
    messages = [{"role": "developer", "content": "be kind"}, {"role": "user", "content": parts}]
    same = chat(client, messages=messages, max_tokens=None, max_completion_tokens=8)
    assert same.choices[0].message.content == chat(client).choices[0].message.content


@pytest.mark.parametrize("stream", [False, True])
def test_stop(client: openai.OpenAI, stream: bool):
    text = complete(client, max_tokens=40).choices[0].text
    stop = text[10:13]
    found = complete(client, max_tokens=40, stop=[stop, "\0never"], stream=stream)
    if stream:
        chunks = list(found)
        assert "".join(chunk.choices[0].text for chunk in chunks) == text[: text.index(stop)]
        assert chunks[-1].choices[0].finish_reason == "stop"
    else:
        assert found.choices[0].text == text[: text.index(stop)]
        assert found.choices[0].finish_reason == "stop"


def test_seeds(client: openai.OpenAI):
    draw = lambda seed: complete(client, temperature=1.0, seed=seed, max_tokens=30).choices[0].text
    assert draw(7) == draw(7) == draw(7 + 2**32) != draw(8)
    alone = expected(max_tokens=30, sampling=SamplingConfig(temperature=1.0), seed=7)
    assert draw(7) == alone.text


@pytest.mark.parametrize("stream", [False, True])
def test_log_probabilities_of_completions(client: openai.OpenAI, stream: bool):
    found = complete(client, logprobs=3, stream=stream)
    alone = expected(logprobs=3)
    parts = (
        [chunk.choices[0].logprobs for chunk in found] if stream else [found.choices[0].logprobs]
    )
    join = lambda name: [x for part in parts if part for x in getattr(part, name)]
    np_close = lambda a, b: all(math.isclose(x, y, rel_tol=1e-4) for x, y in zip(a, b, strict=True))
    assert np_close(join("token_logprobs"), [found.logprob for found in alone.logprobs])
    assert [max(top.values()) for top in join("top_logprobs")] == join("token_logprobs")
    offsets, tokens = join("text_offset"), join("tokens")
    assert offsets == [sum(map(len, tokens[:i])) for i in range(len(tokens))]


def test_log_probabilities_of_chats(client: openai.OpenAI):
    choice = chat(client, logprobs=True, top_logprobs=2).choices[0]
    content = choice.logprobs.content
    data = b"".join(bytes(entry.bytes) for entry in content)
    assert data.decode(errors="replace") == choice.message.content
    assert all(len(entry.top_logprobs) == 2 for entry in content)
    assert all(entry.top_logprobs[0].logprob == entry.logprob for entry in content)
    assert chat(client, logprobs=True).choices[0].logprobs.content[0].top_logprobs == []


REFUSED = [
    ({"n": 2}, "n"),
    ({"best_of": 2}, "best_of"),
    ({"echo": True}, "echo"),
    ({"suffix": "x"}, "suffix"),
    ({"presence_penalty": 0.5}, "presence_penalty"),
    ({"logit_bias": {"1": 2}}, "logit_bias"),
    ({"temperature": -1}, "temperature"),
    ({"top_p": 0}, "top_p"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"logprobs": 21}, "logprobs"),
    ({"stop": ""}, "stop"),
    ({"stop": ["x"] * 17}, "stop"),
    ({"prompt": ["a", "b"]}, "prompt"),
    ({"prompt": {"a": 1}}, "prompt"),
    ({"stream": "yes"}, "stream"),
]


@pytest.mark.parametrize(("values", "param"), REFUSED)
def test_what_is_refused(client: openai.OpenAI, values: dict[str, Any], param: str):
    with pytest.raises(openai.BadRequestError) as caught:
        client.post(
            "/completions",
            body={"prompt": "a", "model": NAME} | values,
            cast_to=httpx.Response,
        )
    assert caught.value.param == param
    assert caught.value.type == "invalid_request_error"


@pytest.mark.parametrize(
    "values",
    [
        {"tools": [{"type": "function"}]},
        {"response_format": {"type": "json_object"}},
        {"messages": []},
        {"messages": [{"role": "tool", "content": "x"}]},
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
        {"top_logprobs": 2},
        {"messages": [{"role": "user", "content": "\ud800"}]},
    ],
)
def test_what_chats_refuse(live: Live, values: dict[str, Any]):
    body = {"model": NAME, "messages": [{"role": "user", "content": "a"}]} | values
    with live.client() as client:
        found = client.post("/v1/chat/completions", content=json.dumps(body))
    assert found.status_code == 400
    assert set(found.json()["error"]) == {"message", "type", "param", "code"}


def test_nulls_and_unknown_fields_are_nothing(client: openai.OpenAI):
    nulls = {"temperature": 0, "seed": None, "stop": None, "n": 1, "logit_bias": {}, "user": "me"}
    found = complete(client, extra_body=nulls | {"echo": False, "min_tokens": 5, "x": {"y": []}})
    assert found.choices[0].text == complete(client).choices[0].text
    own = {"top_k": 1, "min_p": 0.0, "repetition_penalty": 1.0}
    greedy = complete(client, temperature=1.0, extra_body=own)
    assert greedy.choices[0].text == complete(client).choices[0].text


def test_another_model_s_name(client: openai.OpenAI, live: Live):
    with pytest.raises(openai.NotFoundError) as caught:
        complete(client, model="gpt-4")
    assert (caught.value.param, caught.value.code) == ("model", "model_not_found")
    with live.client() as http:
        assert http.post("/v1/completions", json={"prompt": "a"}).status_code == 200


def test_many_at_once_get_what_they_get_alone(client: openai.OpenAI):
    values = [{"prompt": f"{n} and {'x' * n}", "max_tokens": 3 + n, "seed": n} for n in range(12)]
    values = [value | {"temperature": 0.8 * (n % 2)} for n, value in enumerate(values)]
    alone = [complete(client, **value).choices[0].text for value in values]
    with concurrent.futures.ThreadPoolExecutor(12) as pool:
        together = list(pool.map(lambda value: complete(client, **value).choices[0].text, values))
    assert together == alone


def test_a_model_without_a_template_says_so():
    from tests.inference import samples

    with (
        live_server.running(lambda: samples.model("ttt_linear", 64)) as live,
        openai.OpenAI(base_url=f"{live.url}/v1", api_key="x", max_retries=0) as client,
    ):
        with pytest.raises(openai.BadRequestError, match="no chat template") as caught:
            chat(client)
        assert caught.value.code == "no_chat_template"
        assert complete(client).usage.completion_tokens == 12


def test_what_doesn_t_fit_the_context():
    with (
        live_server.running(lambda: live_server.model("attention", 64)) as live,
        openai.OpenAI(base_url=f"{live.url}/v1", api_key="x", max_retries=0) as client,
    ):
        with pytest.raises(openai.BadRequestError, match="don't fit the context") as caught:
            complete(client, "x" * 60)
        assert caught.value.code == "context_length_exceeded"
        # A chat without a limit of its own takes what is left.
        found = chat(client, max_tokens=None, messages=[{"role": "user", "content": "x" * 30}])
        assert found.usage.total_tokens <= 64
