"""Reading a row in any split into calls equals reading it as a whole."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bitttt_jax.config import ModelConfig, TernaryConfig
from bitttt_jax.models import transformer
from tests.models import reference, samples

prefill = jax.jit(transformer.prefill, static_argnums=0)
step = jax.jit(transformer.step, static_argnums=0)
init_state = jax.jit(transformer.init_state, static_argnums=(0, 2, 3))

# In float64 rounding almost never decides between two codes: ternary models can be compared too.
MODELS = {
    "attention": samples.config(
        TernaryConfig(inner_norm=True), num_heads=4, num_kv_heads=2, tie_embeddings=False
    ),
    "ttt_linear": samples.config(TernaryConfig(), mixers=("ttt_linear",), norm_placement="subln"),
    "ttt_mlp": samples.config(
        TernaryConfig(path="fake_quant", inner_norm=True),
        mixers=("ttt_mlp",),
        ttt={"backbone": "transformer"},
    ),
}
MIXED = samples.config(TernaryConfig(), mixers=("ttt_linear", "attention"), num_layers=4, window=9)

# Tokens that each of three rows reads in a call.
PREFILLS = np.array([[7, 1, 0], [0, 4, 7], [6, 7, 3]])
WIDEST = PREFILLS.max()


class Reader:
    """Three running sequences, and what they have put out."""

    def __init__(self, config: ModelConfig, slots: int, dtype: str = "float64"):
        self.config, self.params = config, samples.params(config)
        self.token_BT = samples.tokens(3, 50)
        self.cast = jax.tree.map(lambda leaf: leaf.astype(dtype), self.params)
        self.state = init_state(config, self.cast, 3, slots)
        self.position = np.zeros(3, int)
        self.outputs: list[list[Any]] = [[], [], []]

    def prefill(self, length_B: np.ndarray) -> None:
        place = self.position[:, None] + np.arange(WIDEST)  # beyond the lengths too
        part = np.take_along_axis(self.token_BT, place, axis=1)
        hidden, self.state = prefill(self.config, self.cast, self.state, part, length_B)
        self.record(np.asarray(hidden), length_B)

    def step(self) -> None:
        token_B = self.token_BT[np.arange(3), self.position]
        hidden, self.state = step(self.config, self.cast, self.state, token_B)
        self.record(np.asarray(hidden)[:, None], np.ones(3, int))

    def record(self, hidden_BTD: np.ndarray, length_B: np.ndarray) -> None:
        for row, length in enumerate(length_B):
            self.outputs[row].extend(hidden_BTD[row, :length])
        self.position = self.position + length_B

    def check(self, tolerance: float) -> None:
        np.testing.assert_array_equal(self.state.position_B, self.position)
        for row, outputs in enumerate(self.outputs):
            token_T = self.token_BT[row, : self.position[row]]
            expected = reference.hidden(self.config, self.params, token_T)
            np.testing.assert_allclose(outputs, expected, rtol=0, atol=tolerance)


def slots_of(config: ModelConfig) -> int:
    """As few as `init_state` allows; each row reads 40 tokens at most."""
    return WIDEST + config.window - 1 if config.window else 40


@pytest.mark.parametrize("name", MODELS)
def test_prefills_of_any_length(name):
    with jax.enable_x64(True):
        reader = Reader(MODELS[name], slots_of(MODELS[name]))
        for length_B in np.concatenate([PREFILLS, PREFILLS]):
            reader.prefill(length_B)
    reader.check(1e-9)


def test_prefills_and_steps_of_mixed_blocks():
    with jax.enable_x64(True):
        reader = Reader(MIXED, slots_of(MIXED))
        for length_B in PREFILLS:
            reader.prefill(length_B)
        for _ in range(6):
            reader.step()
        for length_B in PREFILLS:
            reader.prefill(length_B)
    reader.check(1e-9)


def test_float32():
    """Without quantisation: a code that rounding changes is a step of 1/127."""
    config = samples.config(mixers=("ttt_linear",), num_layers=1, compute_dtype="float32")
    reader = Reader(config, slots_of(config), "float32")
    for length_B in PREFILLS:
        reader.prefill(length_B)
    reader.check(1e-4)


def test_a_row_of_length_zero_keeps_its_state_bit_by_bit():
    with jax.enable_x64(True):
        reader = Reader(MIXED, slots_of(MIXED))
        reader.prefill(np.array([3, 7, 5]))
        before = reader.state.blocks
        reader.prefill(np.array([0, 2, 7]))
    for old, new in zip(*map(jax.tree.leaves, (before, reader.state.blocks)), strict=True):
        old, new = np.asarray(old), np.asarray(new)
        np.testing.assert_array_equal(old[:, 0], new[:, 0])  # the groups come first
        assert np.any(old[:, 1] != new[:, 1])
    np.testing.assert_array_equal(reader.state.position_B, [3, 9, 12])


def test_bfloat16_keeps_fast_weights_in_float32():
    config = samples.config(
        TernaryConfig(),
        mixers=("ttt_linear", "attention", "ttt_mlp"),
        num_layers=3,
        compute_dtype="bfloat16",
    )

    def run(params):
        state = transformer.init_state(config, params, 2, 8)
        return transformer.prefill(config, params, state, np.zeros((2, 8), int), np.full(2, 8))

    hidden, state = jax.eval_shape(run, samples.params(config, "float32"))
    assert hidden.dtype == jnp.bfloat16
    linear, attention, mlp = state.blocks
    bits = {leaf.dtype for leaf in jax.tree.leaves(attention.mixer)}
    assert bits == {jnp.dtype("uint16")}
    for block in (linear, mlp):
        dtypes = {leaf.dtype for leaf in jax.tree.leaves(block.mixer.stream)}
        assert dtypes == {jnp.dtype("float32")}
        assert block.tail.dtype == block.mixer.key_tail.dtype == jnp.bfloat16


def test_the_state_of_a_stacked_model_starts_from_each_groups_own_fast_weights():
    config = samples.config(
        mixers=("attention", "ttt_linear"), num_layers=6, compute_dtype="bfloat16"
    )
    params = samples.params(config, "float32")
    state = jax.tree.map(np.asarray, init_state(config, params, 2, 5))
    initial = params["blocks"]["block_1"]["mixer"]["fast"]["w1"]
    fast = state.blocks[1].mixer.stream.fast["w1"]
    assert fast.shape[:2] == (3, 2)
    np.testing.assert_array_equal(fast[:, 0], initial)
    np.testing.assert_array_equal(fast[:, 1], initial)
    assert state.blocks[0].mixer.key.shape[:3] == (3, 2, 5)
