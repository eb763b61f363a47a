"""The Pallas kernel in interpret mode, and its way to a TPU's compiler as far as it goes here."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bitttt_jax.errors import ConfigError
from bitttt_jax.ternary import packing
from bitttt_jax.ternary.kernels import pallas_tpu, xla
from bitttt_jax.ternary.matmul import matmul

# Rows, inputs, outputs of each weight: of decoding and of prefill, one block and several.
SHAPES = [
    (1, 128, (128,)),
    (3, 2560, (640, 128)),
    (8, 384, (256,)),
    (300, 1280, (512,)),
]


def inputs(M: int, K: int, widths, dtype="float32"):
    rng = np.random.default_rng([M, K])
    x = jnp.asarray(3 * rng.normal(size=(M, K)), dtype)
    weights = tuple(
        packing.pack(
            rng.integers(-1, 2, (K, n)).astype(np.int8), jnp.float32(rng.uniform(0.01, 2)), "rows4"
        )
        for n in widths
    )
    return x, weights


@pytest.mark.parametrize("compute", ["int8", "bfloat16"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_kernel_computes_what_xla_does(shape, dtype, compute):
    x, weights = inputs(*shape, dtype)
    kernel = functools.partial(pallas_tpu.matmul, compute=compute, interpret=True)
    for found, expected in zip(
        jax.jit(kernel)(x, weights), jax.jit(xla.matmul)(x, weights), strict=True
    ):
        assert found.dtype == dtype
        floats = (np.asarray(y, np.float32) for y in (found, expected))
        tolerance = 5e-7 if dtype == "float32" else 2**-8  # XLA may round scales in another order
        np.testing.assert_allclose(*floats, rtol=tolerance, atol=0)


@pytest.mark.parametrize("compute", ["int8", "bfloat16"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_it_lowers_for_tpus(shape, compute):
    x, weights = inputs(*shape)
    kernel = jax.jit(functools.partial(pallas_tpu.matmul, compute=compute))
    text = kernel.trace(x, weights).lower(lowering_platforms=("tpu",)).as_text()
    assert text.count("tpu_custom_call") == len(weights)


def test_what_it_does_not_take():
    x, weights = inputs(2, 256, (128, 40))
    with pytest.raises(ConfigError, match="multiples of 128"):
        matmul(x, weights, implementation="pallas_tpu")
    blocks = packing.convert_layout(weights[0], "i2_s")
    assert pallas_tpu.takes(weights[0]) and not pallas_tpu.takes(blocks)
