"""Streams that keep their state: what they read, write, learn, save and load."""

from __future__ import annotations

import dataclasses
import json
import threading
from collections.abc import Iterator
from typing import Any

import httpx
import jax
import numpy as np
import pytest

from bitttt_jax.inference.engine import Engine
from bitttt_jax.inference.requests import Request
from bitttt_jax.training.health import ttt_report
from tests.inference import samples
from tests.server import live as live_server
from tests.server.live import TEMPLATE, Live, running, until

Event = tuple[str, Any]
GREEDY = {"temperature": 0, "max_tokens": 9}


@pytest.fixture(scope="module")
def http(live: Live) -> Iterator[httpx.Client]:
    with live.client() as client:
        yield client


def make(http: httpx.Client, **values: Any) -> str:
    found = http.post("/bitttt/streams", json=values)
    assert found.status_code == 201, found.text
    return f"/bitttt/streams/{found.json()['id']}"


def events(found: httpx.Response) -> list[Event]:
    assert found.status_code == 200, found.text
    frames = [frame for frame in found.text.split("\n\n") if frame and not frame.startswith(":")]
    pairs = (frame.split("\n", 1) for frame in frames)
    return [
        (name.removeprefix("event: "), json.loads(data.removeprefix("data: ")))
        for name, data in pairs
    ]


def write(http: httpx.Client, stream: str, text: str = "", **values: Any) -> list[Event]:
    return events(http.post(f"{stream}/write", json=GREEDY | {"text": text} | values))


def text_of(found: list[Event]) -> str:
    return "".join(data["text"] for name, data in found if name == "piece")


def named(found: list[Event], name: str) -> list[Any]:
    return [data for other, data in found if other == name]


def alone(text: str, max_tokens: int = 9, name: str = "hybrid") -> str:
    """What the engine writes after a document."""
    model = live_server.model(name)
    tokens = [model.tokenizer.bos_id, *text.encode()]
    request = Request(tokens, max_tokens, samples.GREEDY, stop_ids=model.tokenizer.stop_ids)
    return Engine(model).run([request])[0].result().text


def test_the_model(http: httpx.Client):
    found = http.get("/bitttt/model").json()
    assert found["uses_ttt"] and found["has_chat_template"] and not found["packed"]
    assert found["mixers"] == ["ttt_linear", "attention"] and found["vocab_size"] == 257
    assert set(found) == {
        "description", "step", "newest_step", "name", "uses_ttt", "has_chat_template", "context",
        "vocab_size", "mixers", "window", "loaded_at", "packed",
    }  # fmt: skip


def test_a_document_goes_on(http: httpx.Client):
    stream = make(http, mode="completion")
    first = write(http, stream, "one two three ")
    assert text_of(first) == alone("one two three ")
    second = write(http, stream)
    assert text_of(first) + text_of(second) == alone("one two three ", 18)
    third = write(http, stream, "four")
    assert text_of(third) == alone("one two three " + text_of(first) + text_of(second) + "four")
    state = http.get(stream).json()
    assert [turn["role"] for turn in state["turns"]] == ["user", "assistant"] * 3
    done = named(third, "done")[0]
    assert done["finish_reason"] == "length" and done["tokens"] == 9
    assert done["position"] == state["position"] == state["tokens"] == 1 + 14 + 3 * 9 + 4


def test_the_inner_loss_is_that_of_the_whole_text(http: httpx.Client):
    """Of what was read and what was written, wherever turns begin and end."""
    stream = make(http)
    found = write(http, stream, "a text of some length ") + write(http, stream, "and")
    found += events(http.post(f"{stream}/read", json={"text": " more to read of it" * 3}))
    inner = named(found, "inner")
    assert [losses["position"] for losses in inner] == list(range(4, 4 * len(inner) + 1, 4))
    model, state = live_server.model(), http.get(stream).json()
    text = "".join(turn["content"] for turn in state["turns"])
    assert 4 * len(inner) <= len(text) + 1 <= 4 * len(inner) + 8
    tokens = np.array([model.tokenizer.bos_id, *text.encode()], np.int32)[None, : 4 * len(inner)]
    whole = ttt_report(model.config, model.params, tokens)
    for name in ("initial", "current", "updated"):
        mean = np.mean([losses[name] for losses in inner])
        np.testing.assert_allclose(mean, whole[f"inner_loss_{name}"], rtol=1e-4)
    for losses in inner:
        means = [losses[name] for name in ("initial", "current", "updated")]
        np.testing.assert_allclose(np.mean(losses["layers"], axis=0), means, atol=1e-5)


def test_what_was_read_stands_before_what_is_said(http: httpx.Client):
    stream = make(http)
    found = events(http.post(f"{stream}/read", json={"text": "to be read. " * 20}))
    assert named(found, "reading")[-1]["done"] > 200
    assert {name for name, _ in found} == {"reading", "inner", "done"}
    said = write(http, stream, "now")
    assert text_of(said) == alone("to be read. " * 20 + "now")
    assert named(said, "inner")[0]["position"] > 230  # nothing was read twice
    assert [turn["role"] for turn in http.get(stream).json()["turns"]] == ["user", "assistant"]


def test_a_chat(http: httpx.Client):
    stream = make(http, mode="chat", system="be kind")
    first = write(http, stream, "hello")
    prompt = "s:be kind\nu:hello\na:"
    assert text_of(first) == alone(prompt)
    events(http.post(f"{stream}/read", json={"text": "look"}))
    second = write(http, stream, "bye")
    prompt += f"{text_of(first)}\nu:look\n\nbye\na:"
    assert text_of(second) == alone(prompt)
    http.post(f"{stream}/system", json={"text": "be rude"})
    third = write(http, stream, "so")
    rest = f"{text_of(second)}\nu:so\na:"
    assert text_of(third) == alone(prompt.replace("kind", "rude") + rest)
    assert named(third, "inner")[0]["position"] == 4  # all of it was read again
    http.post(f"{stream}/reset", json={})
    assert text_of(write(http, stream, "hello")) == alone("s:be rude\nu:hello\na:")


def test_without_learning_every_turn_reads_all_again(http: httpx.Client):
    stream = make(http, learn=False)
    first = write(http, stream, "one two three ")
    second = write(http, stream, " and four")
    assert text_of(second) == alone(f"one two three {text_of(first)} and four")
    assert named(second, "inner")[0]["position"] == 4
    assert http.post(f"{stream}/learn", json={"on": True}).json()["learn"] is True
    assert named(write(http, stream, "x"), "inner")[0]["position"] > 4


def test_a_reply_that_a_stop_string_ends(http: httpx.Client):
    stream = make(http)
    text = alone("abc", 30)
    found = write(http, stream, "abc", max_tokens=30, stop=[text[5:7]])
    assert text_of(found) == text[:5]
    assert named(found, "done")[0]["finish_reason"] == "stop"
    assert text_of(write(http, stream, "d")) == alone(f"abc{text[:5]}d")


def test_stopping_a_reply(live: Live, http: httpx.Client):
    stream = make(http)
    found: list[httpx.Response] = []
    body = GREEDY | {"text": "abc", "max_tokens": 5000}
    ask = lambda: found.append(http.post(f"{stream}/write", json=body))
    thread = threading.Thread(target=ask)
    thread.start()
    until(lambda: live.worker.waiting > 0)
    assert http.post(f"{stream}/reset", json={}).status_code in (200, 409)
    until(lambda: live.worker.waiting > 0 or bool(found))
    http.post(f"{stream}/stop", json={})
    thread.join(60)
    done = named(events(found[0]), "done")[0]
    assert done["finish_reason"] in ("cancelled", "length", "stop")
    assert http.get(stream).json()["turns"][-1]["content"] == text_of(events(found[0]))


def test_who_goes_leaves_what_there_is(live: Live, http: httpx.Client):
    stream = make(http)
    body = GREEDY | {"text": "abc", "max_tokens": 5000}
    with live.client() as other, other.stream("POST", f"{stream}/write", json=body) as found:
        for line in found.iter_lines():
            if line.startswith("event: piece"):
                break
    until(lambda: live.worker.waiting == 0)
    turns = http.get(stream).json()["turns"]
    assert alone("abc", 5000).startswith(turns[1]["content"])
    assert text_of(write(http, stream, "x")) == alone(f"abc{turns[1]['content']}x")


@pytest.mark.parametrize(
    "name", ["hybrid", pytest.param("ttt_mlp", marks=pytest.mark.slow), "attention"]
)
def test_states_are_saved_and_loaded(name: str):
    with running(lambda: live_server.model(name), playground=True) as live, live.client() as http:
        stream = make(http)
        first = write(http, stream, "something to remember ")
        saved = http.get(f"{stream}/state")
        assert saved.headers["content-type"] == "application/octet-stream"
        there = http.get(stream).json()
        expected = text_of(write(http, stream, "and"))
        other = make(http)
        found = http.put(f"{other}/state", content=saved.content)
        assert found.status_code == 200, found.text
        assert {**found.json(), "position": 0} == {**there, "position": 0}
        again = write(http, other, "and")
        assert text_of(again) == expected
        assert expected == alone("something to remember " + text_of(first) + "and", name=name)
        if name != "attention":  # the state was there, not read again
            assert named(again, "inner")[0]["position"] > 20
        # A stream of the other kind, and files that are none.
        chat = make(http, mode="chat")
        assert http.put(f"{chat}/state", content=saved.content).status_code == 400
        for content in (b"", b"{}", saved.content[:-7], saved.content.replace(b"user", b"USER")):
            refused = http.put(f"{other}/state", content=content)
            assert refused.status_code == 400
            assert "/" not in refused.json()["error"]["what"]
        assert text_of(write(http, other, "!"))


def test_the_state_of_another_model_is_refused(http: httpx.Client):
    model = live_server.model()
    params = jax.tree.map(lambda leaf: leaf + 1e-3, model.params)
    changed = dataclasses.replace(model, params=params, description="step 7")
    with running(lambda: changed, playground=True) as live, live.client() as other:
        stream = make(other)
        write(other, stream, "something")
        state = other.get(f"{stream}/state").content
    mine = make(http)
    refused = http.put(f"{mine}/state", content=state)
    assert refused.status_code == 409
    error = refused.json()["error"]
    assert error["what"] == "the file is the memory of another model"
    assert "step 7" in error["why"]


def test_newer_weights_read_the_conversation_anew():
    model = dataclasses.replace(live_server.model("ttt_linear"), step=2)
    params = jax.tree.map(lambda leaf: 1.1 * leaf, model.params)
    newer = dataclasses.replace(model, params=params, step=4, description="step 4")
    with running(lambda: model, playground=True) as live, live.client() as http:
        stream = make(http)
        first = write(http, stream, "something said ")
        live.worker.offer(newer)
        until(lambda: live.worker.engine is not None and live.worker.engine.model is newer)
        assert http.get("/bitttt/model").json()["step"] == 4
        second = write(http, stream, "and")
        change = named(second, "model")[0]
        assert (change["step"], change["before"]) == (4, 2)
        assert named(second, "inner")[0]["position"] == 4
        prompt = [256, *f"something said {text_of(first)}and".encode()]
        request = Request(prompt, 9, samples.GREEDY, stop_ids=(256,))
        assert text_of(second) == Engine(newer).run([request])[0].result().text
        assert named(write(http, stream), "model") == []


def test_newer_weights_wait_for_the_replies():
    model = dataclasses.replace(live_server.model("ttt_linear"), step=2)
    newer = dataclasses.replace(model, step=4)
    with running(lambda: model, playground=True) as live, live.client() as http:
        body = {"prompt": "a", "max_tokens": 3000, "temperature": 0}
        whole = http.post("/v1/completions", json=body).json()
        found: list[Any] = []
        ask = lambda: found.append(http.post("/v1/completions", json=body).json())
        thread = threading.Thread(target=ask)
        thread.start()
        until(lambda: live.worker.waiting == 1)
        live.worker.offer(newer)
        short = http.post("/v1/completions", json=body | {"max_tokens": 1}).json()
        assert live.worker.engine is not None and live.worker.engine.model is newer
        thread.join(60)
        assert found[0]["choices"] == whole["choices"]
        assert short["usage"]["completion_tokens"] == 1


def test_a_window_forgets_the_oldest_turns():
    load = lambda: dataclasses.replace(samples.model("attention", 64), chat_template=TEMPLATE)
    with running(load, playground=True) as live, live.client() as http:
        stream = make(http, mode="chat")
        forgotten = 0
        for _ in range(6):
            found = write(http, stream, "some words")
            forgotten += named(found, "done")[0]["forgotten"]
        assert forgotten > 0
        refused = write(http, stream, "x" * 70)
        assert [name for name, _ in refused] == ["error"]
        assert set(refused[0][1]) == {"what", "why", "fix"}
        assert text_of(write(http, stream, "go on"))
        learn = http.post(f"{stream}/learn", json={"on": True})
        assert learn.status_code == 400


def test_mistakes(http: httpx.Client):
    assert http.get("/bitttt/streams/none").json()["error"]["what"] == "there is no such stream"
    stream = make(http)
    for path, body in (
        ("write", {"text": 1}),
        ("write", {"temperature": -1}),
        ("write", {"max_tokens": 0}),
        ("read", {}),
        ("learn", {"on": "yes"}),
        ("system", {"text": None}),
    ):
        found = http.post(f"{stream}/{path}", json=body)
        assert found.status_code == 400 and set(found.json()["error"]) == {"what", "why", "fix"}
    assert http.delete(stream).status_code == 200
    assert http.get(stream).status_code == 404
    assert http.post("/bitttt/streams", json={"mode": "poem"}).status_code == 400


def test_there_are_only_so_many_streams():
    load = lambda: samples.model("ttt_linear")
    with running(load, playground=True) as live, live.client() as http:
        assert http.post("/bitttt/streams", json={"mode": "chat"}).status_code == 400
        streams = [make(http) for _ in range(64)]
        assert http.post("/bitttt/streams", json={}).status_code == 429
        http.delete(streams[0])
        make(http)


def test_without_the_flag_there_is_no_playground():
    with running() as live, live.client() as http:
        assert http.get("/bitttt/model").status_code == 404
        assert http.post("/bitttt/streams", json={}).status_code == 404
