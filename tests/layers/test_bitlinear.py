from __future__ import annotations

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bitttt_jax.config import ModelConfig, TernaryConfig
from bitttt_jax.layers.bitlinear import BitLinear, apply_together
from bitttt_jax.ops import tables

WIDTH, FEATURES = 12, 7
KERNEL = np.random.default_rng(0).normal(size=(WIDTH, FEATURES)).astype(np.float32)
X = np.random.default_rng(1).normal(size=(2, 3, WIDTH)).astype(np.float32)

PATHS = pytest.mark.parametrize("path", ["fake_quant", "int8"])


def config(**ternary) -> ModelConfig:
    return ModelConfig(compute_dtype="float32", ternary=TernaryConfig(**ternary))


def dequantised_kernel() -> np.ndarray:
    mean = np.abs(KERNEL).mean()
    return np.clip(np.round(KERNEL / mean), -1, 1) * mean


def dequantised(x: np.ndarray) -> np.ndarray:
    largest = np.abs(x).max(-1, keepdims=True)
    return np.round(x * (127 / largest)) * largest / 127


@PATHS
def test_the_forward_pass_uses_only_three_weights(path):
    """Unit vectors read the matrix out: they are exact in 8 bits."""
    layer = BitLinear(config(path=path), FEATURES, ternary=True)
    rows = jax.jit(layer.apply)({"params": {"kernel": KERNEL}}, np.eye(WIDTH, dtype=np.float32))
    codes = np.asarray(rows) / np.abs(KERNEL).mean()
    np.testing.assert_allclose(codes, np.round(codes), rtol=0, atol=1e-6)
    assert set(np.unique(np.round(codes))) == {-1, 0, 1}
    np.testing.assert_allclose(rows, dequantised_kernel(), rtol=0, atol=1e-6)


@PATHS
def test_gradients_are_straight_through(path):
    layer = BitLinear(config(path=path), FEATURES, ternary=True)
    probe = np.random.default_rng(2).normal(size=(2, 3, FEATURES)).astype(np.float32)

    @jax.jit
    def run(kernel, x):
        y, pullback = jax.vjp(lambda k, x: layer.apply({"params": {"kernel": k}}, x), kernel, x)
        return y, *pullback(jnp.asarray(probe))

    y, kernel_gradient, x_gradient = run(KERNEL, X)
    seen = dequantised(X)
    np.testing.assert_allclose(y, seen @ dequantised_kernel(), rtol=0, atol=1e-5)
    np.testing.assert_allclose(x_gradient, probe @ dequantised_kernel().T, rtol=0, atol=1e-5)
    expected = np.einsum("btk,btn->kn", seen, probe)
    np.testing.assert_allclose(kernel_gradient, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("strength", [0.0, 0.5])
def test_strength_reaches_the_product(strength):
    layer = BitLinear(config(path="fake_quant"), FEATURES, ternary=True)
    y = jax.jit(layer.apply)({"params": {"kernel": KERNEL}}, X, strength)
    mix = lambda a, b: (1 - strength) * a + strength * b
    expected = mix(X, dequantised(X)) @ mix(KERNEL, dequantised_kernel())
    np.testing.assert_allclose(y, expected, rtol=0, atol=1e-5)


def test_activations_can_stay_in_float():
    layer = BitLinear(config(path="fake_quant", activations=False), FEATURES, ternary=True)
    y = jax.jit(layer.apply)({"params": {"kernel": KERNEL}}, X)
    np.testing.assert_allclose(y, X @ dequantised_kernel(), rtol=0, atol=1e-5)


def test_a_layer_that_is_not_ternary_is_an_ordinary_product():
    layer = BitLinear(config(inner_norm=True), FEATURES, ternary=False)
    params = jax.eval_shape(layer.init, jax.random.key(0), X)["params"]
    assert jax.tree.map(jnp.shape, params) == {"kernel": (WIDTH, FEATURES)}
    y = jax.jit(layer.apply)({"params": {"kernel": KERNEL}}, X)
    np.testing.assert_allclose(y, X @ KERNEL, rtol=0, atol=1e-5)


def test_inner_norm_normalises_before_quantisation():
    settings = config(inner_norm=True)
    layer = BitLinear(settings, FEATURES, ternary=True)
    scale = np.random.default_rng(3).normal(size=WIDTH).astype(np.float32)
    y = jax.jit(layer.apply)({"params": {"kernel": KERNEL, "norm": {"scale": scale}}}, X)
    root = np.sqrt(np.mean(X**2, -1, keepdims=True) + settings.norm_eps)
    expected = dequantised(X / root * scale) @ dequantised_kernel()
    np.testing.assert_allclose(y, expected, rtol=0, atol=1e-5)


class Together(nn.Module):
    config: ModelConfig
    ternary: bool
    apart: bool

    @nn.compact
    def __call__(self, x):
        widths = {"first": 4, "second": 6}
        layers = [BitLinear(self.config, n, self.ternary, name=name) for name, n in widths.items()]
        if self.apart:
            return tuple(layer(x) for layer in layers)
        return apply_together(tuple(layers), x)


@pytest.mark.parametrize("ternary", [True, False])
@pytest.mark.parametrize("inner_norm", [True, False])
def test_layers_applied_together_have_the_parameters_and_outputs_of_each(ternary, inner_norm):
    together = Together(config(inner_norm=inner_norm), ternary, apart=False)
    apart = dataclasses.replace(together, apart=True)
    params = jax.jit(together.init)(jax.random.key(0), X)
    structure = jax.tree.map(jnp.shape, params)
    assert structure == jax.tree.map(jnp.shape, jax.eval_shape(apart.init, jax.random.key(0), X))
    run = jax.jit(lambda params: (together.apply(params, X), apart.apply(params, X)))
    for own, expected in zip(*run(params), strict=True):
        np.testing.assert_allclose(own, expected, rtol=1e-6, atol=1e-6)


@PATHS
def test_bfloat16_inputs_give_bfloat16_outputs_and_float32_weight_gradients(path):
    layer = BitLinear(config(path=path), FEATURES, ternary=True)
    params, x = {"params": {"kernel": KERNEL}}, X.astype(jnp.bfloat16)
    loss = lambda params: jnp.sum(layer.apply(params, x).astype(jnp.float32))
    assert jax.eval_shape(layer.apply, params, x).dtype == jnp.bfloat16
    assert jax.eval_shape(jax.grad(loss), params)["params"]["kernel"].dtype == jnp.float32


def test_a_kernel_of_int8_rows_and_a_bias():
    """A table in the kernel's place is the same product up to the rounding of 8 bits."""
    layer = BitLinear(config(), FEATURES, ternary=False, use_bias=True)
    bias = np.arange(FEATURES, dtype=np.float32)
    params = {"kernel": tables.quantize_table(jnp.asarray(KERNEL.T)), "bias": bias}
    y = jax.jit(layer.apply)({"params": params}, X)
    np.testing.assert_allclose(y, X @ KERNEL + bias, rtol=0, atol=0.1)
    exact = jax.jit(layer.apply)({"params": params | {"kernel": KERNEL}}, X)
    np.testing.assert_allclose(exact, X @ KERNEL + bias, rtol=0, atol=1e-5)
