"""Products of 8-bit activations and ternary weights, as training computes them.

Two forward computations of the same function: `fake_quant` multiplies dequantised floats, `int8`
multiplies the integers exactly and scales the result. Their gradients are the same straight-through
ones: `dL/dx` sees the ternary weights, `dL/dw` the quantised activations.

Several weights can share one input (queries, keys and values do): it is quantised once, and
transposed once in the backward pass.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax

from bitttt_jax.ops import product, quantize

Weights = Sequence[jax.Array]


def fake_quant_matmul(
    x: jax.Array,
    weights: Weights,
    *,
    strength: jax.Array | float = 1.0,
    quantize_activations: bool = True,
) -> tuple[jax.Array, ...]:
    """Products of dequantised activations and weights.

    Args:
      x: activations `[M, K]`; their type is the type of the products' inputs.
      weights: latent weights `[K, N]`, float32, each with its own N and scale.
      strength: how far activations and weights are quantised, from 0 (float) to 1.
      quantize_activations: False leaves `x` as it is.

    Returns:
      A float32 `[M, N]` for each of the weights.
    """
    if quantize_activations:
        x = quantize.fake_quantize(x, *quantize.int8_codes(x), strength)
    quantized = (quantize.fake_quantize(w, *quantize.ternary_codes(w), strength) for w in weights)
    return product.shared_matmul(x, tuple(w.astype(x.dtype) for w in quantized))


@jax.custom_vjp
def int8_matmul(x: jax.Array, weights: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
    """Exact products of int8 activations and ternary weights, accumulated in int32.

    Equal to `fake_quant_matmul` up to the rounding of its floats, gradients included.
    Differentiable any number of times in reverse.

    Args:
      x: activations `[M, K]`; the gradients' products are computed in their type.
      weights: latent weights `[K, N]`, float32, each with its own N and scale.

    Returns:
      A float32 `[M, N]` for each of the weights.
    """
    x_codes, x_scale = quantize.int8_codes(x)
    outputs = []
    for w in weights:
        w_codes, w_scale = quantize.ternary_codes(w)
        y = lax.dot_general(
            x_codes, w_codes, (((1,), (0,)), ((), ())), preferred_element_type=jnp.int32
        )
        outputs.append(y.astype(x_scale.dtype) * (x_scale * w_scale))
    return tuple(outputs)


def _int8_matmul_fwd(x, weights):
    # The backward products take the codes as floats (exact in bfloat16) and the scales outside.
    # It is straight-through on them, and the call of `int8_matmul` itself (XLA computes the codes
    # once), that make the backward pass differentiable in turn.
    def floats(value, codes, scale):
        scale = lax.stop_gradient(scale)
        scaled = (value / scale).astype(x.dtype)
        return quantize.straight_through(scaled, codes.astype(x.dtype)), scale

    x_floats, x_scale = floats(x, *quantize.int8_codes(x))
    quantized = [floats(w, *quantize.ternary_codes(w)) for w in weights]
    return int8_matmul(x, weights), (x_floats, x_scale, quantized)


def _int8_matmul_bwd(residuals, grads):
    x_floats, x_scale, quantized = residuals
    dtype = x_floats.dtype
    grad_x = sum(
        product.matmul_transposed(g.astype(dtype), w_floats) * w_scale
        for g, (w_floats, w_scale) in zip(grads, quantized, strict=True)
    )
    grad_w = tuple(product.transposed_matmul(x_floats, (g * x_scale).astype(dtype)) for g in grads)
    return grad_x.astype(dtype), grad_w


int8_matmul.defvjp(_int8_matmul_fwd, _int8_matmul_bwd)
