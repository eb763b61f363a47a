from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from bitttt_jax.inference.engine import Engine
from bitttt_jax.inference.reader import Reader
from bitttt_jax.inference.requests import Request
from bitttt_jax.layers.inputs import Sequence
from bitttt_jax.models import parameters
from bitttt_jax.models.transformer import Transformer
from bitttt_jax.training.health import ttt_report
from tests.inference import samples

NAMES = [f"inner_loss_{name}" for name in ("initial", "current", "updated")]


def read_all(reader: Reader, token_T: np.ndarray, ends: list[int]) -> list:
    return [
        losses
        for end in [*ends, len(token_T)]
        for part in reader.read(token_T[:end])
        for losses in part
    ]


@pytest.mark.parametrize("name", ["ttt_linear", "ttt_mlp", "hybrid"])
@pytest.mark.parametrize("ends", [[], [1, 5, 6, 30], [4, 8], list(range(1, 46))])
def test_any_split_gives_the_losses_of_the_whole(name: str, ends: list[int]):
    model = samples.model(name)
    token_T = np.array(samples.random_prompt(46), np.int32)
    found = read_all(Reader(Engine(model)), token_T, ends)
    b = model.config.ttt.mini_batch
    assert [losses.position for losses in found] == list(range(b, 46, b))
    whole = ttt_report(model.config, model.params, token_T[None, : len(found) * b])
    means = np.mean([losses.means for losses in found], axis=0)
    np.testing.assert_allclose(means, [whole[n] for n in NAMES], rtol=2e-5)


def test_layers_are_told_apart():
    """Layer by layer what the report of a model of whole rows says."""
    model = samples.model("ttt_linear")
    token_T = np.array(samples.random_prompt(16), np.int32)
    found = read_all(Reader(Engine(model)), token_T, [7])
    sequence = Sequence(np.arange(16)[None])
    _, variables = Transformer(model.config).apply(
        {"params": model.params}, token_T[None], sequence, mutable=["health"]
    )
    report = variables["health"]["blocks"]["block_0"]["mixer"]["ttt"]
    layers = np.mean([losses.layers for losses in found], axis=0)
    np.testing.assert_allclose(layers, np.stack([report[n] for n in NAMES], axis=1), rtol=2e-5)


def test_unstacked_parameters_give_the_same():
    model = samples.model("hybrid")
    loose = dataclasses.replace(model, params=parameters.unstack(model.params))
    token_T = np.array(samples.random_prompt(21), np.int32)
    for one, other in zip(
        read_all(Reader(Engine(model)), token_T, []),
        read_all(Reader(Engine(loose)), token_T, [9]),
        strict=True,
    ):
        np.testing.assert_allclose(one.layers, other.layers, rtol=2e-5)


@pytest.mark.parametrize("name", ["ttt_mlp", "hybrid"])
def test_requests_go_on_from_what_was_read(name: str):
    engine = Engine(samples.model(name))
    prompt = np.array(samples.random_prompt(45), np.int32)
    reader = Reader(engine)
    read_all(reader, prompt, [23])
    engine.keep(reader.saved)
    completion = engine.run([Request(prompt, 8, samples.GREEDY)])[0].result()
    assert completion.reused_tokens == 44
    assert list(completion.tokens) == samples.by_rereading(engine.model, prompt.tolist(), 8)[0]


def test_another_sequence_is_read_anew():
    reader = Reader(Engine(samples.model("ttt_linear")))
    one, other = (np.array(samples.random_prompt(20, seed), np.int32) for seed in (1, 2))
    first = read_all(reader, one, [])
    assert read_all(reader, one, []) == []
    assert read_all(reader, other, [])[0].position == 4
    assert read_all(reader, one, []) == first
    part = dataclasses.replace(reader.saved, token_T=one[:18])
    with pytest.raises(ValueError, match="18 tokens"):
        Reader(Engine(samples.model("ttt_linear")), part)
