from __future__ import annotations

import dataclasses
from typing import Any

import jax
import numpy as np
import pytest

from bitttt_jax.errors import ConfigError
from bitttt_jax.inference import steps
from bitttt_jax.inference.engine import Engine
from bitttt_jax.inference.requests import Completion, Request
from bitttt_jax.inference.sampling import SamplingConfig
from tests.inference import samples
from tests.inference.samples import CONFIGS, GREEDY, by_rereading, random_prompt

DRAWN = SamplingConfig(1.0, top_k=40, top_p=0.9, min_p=0.01, repetition_penalty=1.2)


def completed(name: str, request: Request, **settings: Any) -> Completion:
    return Engine(samples.model(name), **settings).submit(request).result()


@pytest.mark.parametrize("name", CONFIGS)
def test_equals_reading_everything_at_every_step(name: str):
    prompt = random_prompt(21)
    completion = completed(name, Request(prompt, 14, GREEDY))
    assert list(completion.tokens) == by_rereading(samples.model(name), prompt, 14)[0]
    assert completion.finish_reason == "length"
    assert completion.prompt_tokens == 21


@pytest.mark.parametrize("length", [1, 15, 16, 17, 18, 33, 50])
def test_padding_of_the_prompt_has_no_effect(length: int):
    prompt = random_prompt(length)
    expected, _ = by_rereading(samples.model("hybrid"), prompt, 6)
    assert list(completed("hybrid", Request(prompt, 6, GREEDY)).tokens) == expected


@pytest.mark.parametrize("name", ["window", "hybrid"])
def test_a_long_prompt_is_read_in_parts(name: str, monkeypatch: pytest.MonkeyPatch):
    """The caches are as small as they may be: those with a window are written over."""
    monkeypatch.setattr(steps, "PREFILL_TOKENS", 16)
    monkeypatch.setattr(steps, "CACHE_STEP", 1)
    prompt = random_prompt(41)
    expected, _ = by_rereading(samples.model(name), prompt, 14)
    assert list(completed(name, Request(prompt, 14, GREEDY)).tokens) == expected


def requests(sampling: SamplingConfig) -> list[Request]:
    """Ragged, and each with settings of its own."""
    return [
        Request(random_prompt(5), 9, sampling, seed=1),
        Request(random_prompt(30), 17, dataclasses.replace(sampling, top_p=0.5), seed=2),
        Request(random_prompt(1), 40, GREEDY),
        Request(random_prompt(17), 3, dataclasses.replace(sampling, top_k=3), seed=4),
        Request(random_prompt(44), 21, dataclasses.replace(sampling, repetition_penalty=1), seed=5),
        Request(random_prompt(9), 30, sampling, seed=1),
        Request(random_prompt(12), 5, dataclasses.replace(sampling, temperature=3.0), seed=7),
    ]


@pytest.mark.parametrize("name", CONFIGS)
def test_rows_that_join_and_leave_write_what_they_write_alone(name: str):
    model, asked = samples.model(name), requests(DRAWN)
    engine = Engine(model, slots=4)
    handles = [engine.submit(request) for request in asked[:3]]
    for _ in range(2):
        engine.step()
    handles += [engine.submit(request) for request in asked[3:]]
    together = [list(handle.result().tokens) for handle in handles]
    for request, tokens in zip(asked, together, strict=True):
        alone = Engine(model).submit(request).result()
        assert list(alone.tokens) == tokens
        prompt = list(request.tokens)
        expected, _ = by_rereading(
            model, prompt, request.max_tokens, request.sampling, request.seed
        )
        assert tokens == expected


def test_draws_depend_on_seed_and_position_only():
    prompt = random_prompt(20)
    tokens = lambda prompt, count, seed: list(
        completed("hybrid", Request(prompt, count, DRAWN, seed)).tokens
    )
    long = tokens(prompt, 20, 3)
    assert tokens(prompt, 8, 3) == long[:8]
    assert tokens(prompt + long[:5], 15, 3) == long[5:]
    assert tokens(prompt, 20, 4) != long


def test_a_stop_token_ends_the_text_unseen():
    prompt = random_prompt(20)
    sampling = SamplingConfig(1.0)
    tokens = list(completed("hybrid", Request(prompt, 10, sampling)).tokens)
    stop = tokens[4]
    found = completed("hybrid", Request(prompt, 10, sampling, stop_ids=(63, stop, 5)))
    assert list(found.tokens) == tokens[: tokens.index(stop)]
    assert found.finish_reason == "stop"


def test_tokens_beyond_the_tokenizer_are_impossible():
    model = samples.model("attention")
    kernel = np.array(model.params["head"]["kernel"])
    kernel[:, 300] *= 1e3
    params = model.params | {"head": {"kernel": kernel}}
    changed = dataclasses.replace(model, params=params)
    assert max(Engine(changed).submit(Request([1], 8, GREEDY)).result().tokens) < 257


def test_log_probabilities_are_the_models():
    prompt, count = random_prompt(20), 12
    completion = completed("hybrid", Request(prompt, count, DRAWN, logprobs=3))
    _, logits = by_rereading(samples.model("hybrid"), prompt, count, DRAWN)
    assert len(completion.logprobs) == count
    for token, found, logits_V in zip(completion.tokens, completion.logprobs, logits, strict=True):
        expected_V = np.asarray(jax.nn.log_softmax(logits_V))
        order = np.argsort(-expected_V)[:3]
        assert [id_ for id_, _ in found.top] == order.tolist()
        np.testing.assert_allclose([value for _, value in found.top], expected_V[order], atol=1e-4)
        assert found.logprob == pytest.approx(expected_V[token], abs=1e-4)


def test_rows_with_and_without_log_probabilities():
    asked = [Request(random_prompt(4), 5, logprobs=count) for count in (None, 0, 20)]
    found = [
        handle.result().logprobs for handle in Engine(samples.model("window"), slots=3).run(asked)
    ]
    assert [len(logprobs) for logprobs in found] == [0, 5, 5]
    assert {len(logprobs.top) for logprobs in found[1]} == {0}
    assert {len(logprobs.top) for logprobs in found[2]} == {20}


def test_stop_strings_end_the_text():
    prompt = random_prompt(20)
    sampling = SamplingConfig(1.5)
    whole = completed("ttt_linear", Request(prompt, 60, sampling, seed=9))
    stop = whole.text[20:23]
    found = completed("ttt_linear", Request(prompt, 60, sampling, seed=9, stop=(stop, "never so")))
    assert found.text == whole.text[: whole.text.index(stop)]
    assert found.finish_reason == "stop"
    assert found.tokens == whole.tokens[: len(found.tokens)]


def test_pieces_make_up_the_completion():
    request = Request(random_prompt(20), 50, SamplingConfig(1.0), logprobs=1)
    handle = Engine(samples.model("hybrid")).submit(request)
    pieces = list(handle)
    completion = handle.result()
    assert "".join(piece.text for piece in pieces) == completion.text
    assert sum((piece.tokens for piece in pieces), ()) == completion.tokens
    assert sum((piece.logprobs for piece in pieces), ()) == completion.logprobs
    assert [piece.finish_reason for piece in pieces[:-1]] == [None] * (len(pieces) - 1)
    assert pieces[-1].finish_reason == "length"
    times = completion.times
    assert 0 < times.submitted <= times.started <= times.first <= times.finished


# --- what is reused ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", CONFIGS)
def test_a_conversation_goes_on_from_where_it_was(name: str):
    engine, prompt = Engine(samples.model(name)), random_prompt(20)
    first = engine.submit(Request(prompt, 12, GREEDY)).result()
    prompt = [*prompt, *first.tokens, *random_prompt(6)]
    second = engine.submit(Request(prompt, 12, GREEDY)).result()
    assert (first.reused_tokens, second.reused_tokens) == (0, 31)
    assert second.tokens == completed(name, Request(prompt, 12, GREEDY)).tokens
    again = engine.submit(Request(prompt, 12, GREEDY)).result()
    assert again.reused_tokens == 37  # all but the last
    assert again.tokens == second.tokens


@pytest.mark.parametrize("name", CONFIGS)
def test_prompts_with_a_common_beginning(name: str):
    engine, system = Engine(samples.model(name), slots=2), random_prompt(40)
    engine.submit(Request([*system, 1, 2, 3], 5, GREEDY)).result()
    running = engine.submit(Request([*system, 4, 5, 6], 60, GREEDY))
    for _ in range(3):
        engine.step()
    later = Request([*system, 4, 5, 7, 8], 9, GREEDY)
    found = engine.submit(later).result()
    # What `running` had read at the prompt's end.
    assert found.reused_tokens == 42
    assert found.tokens == completed(name, later).tokens
    assert running.result().tokens == completed(name, running.request).tokens


def test_attention_can_be_taken_back_and_ttt_cannot():
    prompt = random_prompt(40)
    for name, reused in (("attention", 25), ("ttt_mlp", 0)):
        engine = Engine(samples.model(name))
        engine.submit(Request(prompt, 4, GREEDY)).result()
        other = Request([*prompt[:25], 3, 4], 8, GREEDY)
        found = engine.submit(other).result()
        assert found.reused_tokens == reused
        assert found.tokens == completed(name, other).tokens


def test_a_window_that_was_written_over_is_not_taken_back(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(steps, "PREFILL_TOKENS", 16)
    monkeypatch.setattr(steps, "CACHE_STEP", 1)
    prompt = random_prompt(60)
    for kept, reused in ((58, 58), (47, 47), (46, 0)):
        engine = Engine(samples.model("window"))
        engine.submit(Request(prompt, 4, GREEDY)).result()  # 63 tokens in 21 slots
        other = Request([*prompt[:kept], 3, 4], 8, GREEDY)
        found = engine.submit(other).result()
        assert found.tokens == completed("window", other).tokens
        assert found.reused_tokens == reused, kept


def test_few_bytes_keep_the_latest_state_only():
    engine = Engine(samples.model("attention"), reuse_bytes=1)
    for seed in (1, 2):
        engine.submit(Request(random_prompt(40, seed), 4, GREEDY)).result()
    reused = [
        engine.submit(Request([*random_prompt(40, seed), 5], 4, GREEDY)).result().reused_tokens
        for seed in (2, 1)
    ]
    assert reused == [40, 0]


# --- what doesn't fit -------------------------------------------------------------------------


def test_refused_and_truncated():
    model = samples.model("attention", context=40)
    asked = Request(random_prompt(35), 20, GREEDY)
    with pytest.raises(ConfigError, match=r"prompt of 35 tokens and 20 more.*\n.*it has 40 tokens"):
        Engine(model).submit(asked)
    found = Engine(model, overflow="truncate").submit(asked).result()
    prompt = list(asked.tokens)
    assert found.dropped_tokens == 15
    assert list(found.tokens) == by_rereading(model, [prompt[0], *prompt[16:]], 20)[0]
    # Half of the context at least is the prompt's.
    asked = Request(random_prompt(35), 70, GREEDY)
    found = Engine(model, overflow="truncate").submit(asked).result()
    assert (found.prompt_tokens, len(found.tokens), found.finish_reason) == (20, 20, "length")


def test_sliding_is_a_window_as_wide_as_the_context():
    model = samples.model("attention", context=6)
    asked = Request(random_prompt(35), 20, GREEDY)
    found = Engine(model, overflow="slide").submit(asked).result()
    same = dataclasses.replace(samples.model("window"), params=model.params)
    assert list(found.tokens) == by_rereading(same, list(asked.tokens), 20)[0]


@pytest.mark.parametrize("name", ["ttt_linear", "window"])
def test_what_has_no_bound_never_overflows(name: str):
    asked = Request(random_prompt(35), 20, GREEDY)
    assert completed(name, asked, context=30).tokens == completed(name, asked).tokens


@pytest.mark.parametrize(
    ("prompt", "max_tokens", "message"),
    [
        ([], 1, "no tokens"),
        ([1, 257, 2], 1, "token 257, and the tokenizer has 257 tokens"),
        ([-1], 1, "token -1"),
        ([1], 2**31, "at most"),
        ([1], 0, "max_tokens must be at least 1"),
    ],
)
def test_impossible_requests(prompt: list[int], max_tokens: int, message: str):
    with pytest.raises(ConfigError, match=message):
        Engine(samples.model("attention")).submit(Request(prompt, max_tokens))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"seed": -1}, "seed"),
        ({"stop": ("a", "")}, "stop string is empty"),
        ({"logprobs": 21}, r"logprobs must be in \[0, 20\]"),
    ],
)
def test_impossible_settings(settings: dict[str, Any], message: str):
    with pytest.raises(ConfigError, match=message):
        Request([1], **settings)


# --- what goes wrong --------------------------------------------------------------------------


def test_cancelled_requests_leave_the_others_alone():
    engine = Engine(samples.model("hybrid"), slots=2)
    kept, gone = (Request(random_prompt(n), 60, DRAWN, seed=n) for n in (7, 8))
    handles = [engine.submit(request) for request in (kept, gone, gone, kept)]
    engine.step()
    handles[2].cancel()  # waits
    engine.step()
    handles[1].cancel()  # runs
    done = [handle.result() for handle in handles]
    expected = completed("hybrid", kept).tokens
    assert [each.finish_reason for each in done] == ["length", "cancelled", "cancelled", "length"]
    assert done[0].tokens == done[3].tokens == expected
    assert 0 < len(done[1].tokens) < 60
    assert done[2].tokens == ()


def test_a_request_is_cancelled_while_its_prompt_is_read(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(steps, "PREFILL_TOKENS", 16)
    engine = Engine(samples.model("attention"))
    long, short = Request(random_prompt(60), 9, GREEDY), Request(random_prompt(20), 9, GREEDY)
    gone = engine.submit(long)
    assert engine.step()
    gone.cancel()
    assert not engine.step()
    assert gone.result().finish_reason == "cancelled"
    assert engine.submit(short).result().tokens == completed("attention", short).tokens


def test_an_error_ends_the_request_that_it_struck_only(monkeypatch: pytest.MonkeyPatch):
    engine = Engine(samples.model("attention"), slots=2)
    asked = Request(random_prompt(7), 30, GREEDY)
    running = engine.submit(asked)
    engine.step()
    with monkeypatch.context() as patch:
        fail = lambda *_: (_ for _ in ()).throw(MemoryError("too little"))
        patch.setattr(steps, "read_tokens", fail)
        struck = engine.submit(asked)
        while not struck.is_done:
            engine.step()
    with pytest.raises(MemoryError, match="too little"):
        struck.result()
    with pytest.raises(MemoryError, match="too little"):
        list(struck)
    assert running.result().tokens == completed("attention", asked).tokens
    assert engine.submit(asked).result().tokens == running.result().tokens


def test_an_interrupt_ends_what_runs_and_the_engine_goes_on(monkeypatch: pytest.MonkeyPatch):
    engine = Engine(samples.model("attention"))
    asked = Request(random_prompt(7), 30, GREEDY)
    handle = engine.submit(asked)
    engine.step()
    with monkeypatch.context() as patch:
        patch.setattr(steps, "write_tokens", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            engine.step()
    assert handle.result().finish_reason == "cancelled"
    assert engine.submit(asked).result().tokens == completed("attention", asked).tokens


# --- int8 caches ------------------------------------------------------------------------------


def test_int8_caches_are_nearly_exact():
    prompt = random_prompt(60)
    for name in ("attention", "window", "hybrid"):
        exact, rounded = (
            completed(name, Request(prompt, 1, GREEDY, logprobs=20), cache=cache).logprobs[0]
            for cache in (None, "int8")
        )
        known = dict(exact.top)
        errors = [abs(value - known[id_]) for id_, value in rounded.top if id_ in known]
        assert len(errors) >= 15
        assert 0 < max(errors) < 0.15
