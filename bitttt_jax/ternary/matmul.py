"""The product of 8-bit activations and ternary weights, as training computes it.

Two forward computations of the same function: `fake_quant` multiplies dequantised floats, `int8`
multiplies the integers exactly and scales the result. Their gradients are the same straight-through
ones: `dL/dx` sees the ternary weights, `dL/dw` the quantised activations.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax import lax

from bitttt_jax.ops import product, quantize


def fake_quant_matmul(
    x: jax.Array,
    w: jax.Array,
    *,
    strength: jax.Array | float = 1.0,
    quantize_activations: bool = True,
) -> jax.Array:
    """Product of dequantised activations and weights.

    Args:
      x: activations `[M, K]`; their type is the type of the product's inputs.
      w: latent weights `[K, N]`, float32.
      strength: how far both are quantised, from 0 (float) to 1.
      quantize_activations: False leaves `x` as it is.

    Returns:
      float32 `[M, N]`.
    """
    if quantize_activations:
        x = quantize.fake_quantize(x, *quantize.int8_codes(x), strength)
    w = quantize.fake_quantize(w, *quantize.ternary_codes(w), strength)
    return product.matmul(x, w.astype(x.dtype))


@functools.partial(jax.custom_vjp)
def int8_matmul(x: jax.Array, w: jax.Array) -> jax.Array:
    """Exact product of int8 activations and ternary weights, accumulated in int32.

    Equals `fake_quant_matmul` to the rounding of its floats, gradients included. Differentiable any
    number of times in reverse.

    Args:
      x: activations `[M, K]`; the gradients' products are computed in their type.
      w: latent weights `[K, N]`, float32.

    Returns:
      float32 `[M, N]`.
    """
    return _int8_matmul_fwd(x, w)[0]


def _int8_matmul_fwd(x, w):
    x_codes, x_scale = quantize.int8_codes(x)
    w_codes, w_scale = quantize.ternary_codes(w)
    y = lax.dot_general(
        x_codes, w_codes, (((1,), (0,)), ((), ())), preferred_element_type=jnp.int32
    )
    y = y.astype(x_scale.dtype) * (x_scale * w_scale)
    # The backward products take the codes as floats (exact in bfloat16) and the scales outside.
    # Straight-through on them is what makes the backward pass differentiable in turn.
    x_scale, w_scale = lax.stop_gradient((x_scale, w_scale))
    x_floats = quantize.straight_through((x / x_scale).astype(x.dtype), x_codes.astype(x.dtype))
    w_floats = quantize.straight_through((w / w_scale).astype(x.dtype), w_codes.astype(x.dtype))
    return y, (x_floats, x_scale, w_floats, w_scale)


def _int8_matmul_bwd(residuals, g):
    x_floats, x_scale, w_floats, w_scale = residuals
    dtype = x_floats.dtype
    grad_x = product.matmul_transposed(g.astype(dtype), w_floats) * w_scale
    grad_w = product.matmul(product.swap_last(x_floats), (g * x_scale).astype(dtype))
    return grad_x.astype(dtype), grad_w


int8_matmul.defvjp(_int8_matmul_fwd, _int8_matmul_bwd)
