"""The loop over mini-batches of TTT-Linear, with a backward pass of its own.

The mini-batches come one after the other, so this loop decides how fast TTT-Linear trains. It has
two matrix products forwards and two backwards; all that doesn't depend on the loop's order is done
outside, for all mini-batches at once.

It also never computes the LayerNorm's mean: the gradient of a LayerNorm's input sums to zero over
the features, so updates leave the features' mean of the weights alone. With the mean taken off the
initial weights, every output is centred already.

Suffixes: N mini-batches, b tokens of one; leading dimensions `[N, B, H]`, or `[B, H]` in the loop.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from bitttt_jax.ops.product import matmul, matmul_transposed, swap_last
from bitttt_jax.ttt.inner import NORM_EPS


class Inputs(NamedTuple):
    """What the loop reads; all differentiable but `restart`."""

    rows: jax.Array
    """Keys, then queries, each with a one at the end: `[2b, K + 1]`."""
    rated_keys: jax.Array
    """Keys and their ones times learning rates and last token scale, transposed: `[K + 1, b]`."""
    offset: jax.Array
    """`norm.scale * (norm.bias - target)`, `[b, K]`."""
    gain: jax.Array
    """`norm.scale ** 2`, `[B, H, 1, K]` (no N)."""
    initial: jax.Array
    """Weights where the loop starts, bias as last row, centred: `[B, H, K + 1, K]` (no N)."""
    fresh: jax.Array
    """Weights where a document starts, likewise."""
    restart: jax.Array
    """1 where a document starts *after* the mini-batch, else 0: `[N, B, 1, 1, 1]`."""


class Outputs(NamedTuple):
    """What the loop computes."""

    z: jax.Array
    """Inner outputs for keys and queries at the weights before the mini-batch, `[2b, K]`."""
    d: jax.Array
    """Gradient of the inner loss with respect to the keys' outputs, `[b, K]`."""
    final: jax.Array
    """Weights after the last mini-batch, `[B, H, K + 1, K]`."""


def _mean(x: jax.Array) -> jax.Array:
    return jnp.mean(x, axis=-1, keepdims=True)


def _loss_gradient(c: jax.Array, offset: jax.Array, gain: jax.Array):
    """As `dual.norm_loss_gradient`, for centred c; also what the backward pass wants again."""
    inverse = jax.lax.rsqrt(_mean(c * c) + NORM_EPS)
    standard = c * inverse
    residual = gain * standard + offset
    along = _mean(residual * standard)
    d = (residual - _mean(residual) - standard * along) * inverse
    return d, (inverse, along)


def _forward(inputs: Inputs):
    b = inputs.offset.shape[-2]

    def step(weights, x):
        rows, rated_keys, offset, restart = x
        z = matmul(rows, weights)
        d, (inverse, along) = _loss_gradient(z[..., :b, :], offset, inputs.gain)
        moved = weights - matmul(rated_keys, d)
        after = jnp.where(restart != 0, inputs.fresh, moved)
        return after, (z, d, inverse, along, weights)

    xs = (inputs.rows, inputs.rated_keys, inputs.offset, inputs.restart)
    final, (z, d, inverse, along, weights) = jax.lax.scan(step, inputs.initial, xs)
    return Outputs(z, d, final), (inverse, along, weights)


@jax.custom_vjp
def linear_scan(inputs: Inputs) -> Outputs:
    """Reads the mini-batches in order: `weights -= rated_keys @ d` after each."""
    return _forward(inputs)[0]


def _linear_scan_fwd(inputs: Inputs):
    outputs, saved = _forward(inputs)
    return outputs, (inputs, outputs, saved)


def _linear_scan_bwd(residuals, grads: Outputs):
    inputs, outputs, (inverse, along, weights) = residuals
    b = inputs.offset.shape[-2]
    gain = inputs.gain
    c = outputs.z[..., :b, :]
    standard = c * inverse
    residual = gain * standard + inputs.offset
    rows_transposed = swap_last(inputs.rows)
    keys_rated = swap_last(inputs.rated_keys)

    def step(grad_after, x):
        rows_t, keys, standard, residual, d, inverse, along, restart, grad_z, grad_d = x
        grad_moved = grad_after * (1 - restart)
        grad_d = grad_d - matmul(keys, grad_moved)
        h = grad_d * inverse
        h_along = _mean(h * standard)
        grad_residual = h - _mean(h) - standard * h_along
        grad_standard = gain * grad_residual - h * along - residual * h_along
        inner = _mean(grad_d * d) + _mean(grad_standard * standard)
        grad_c = inverse * (grad_standard - standard * inner)
        grad_z = jnp.concatenate([grad_z[..., :b, :] + grad_c, grad_z[..., b:, :]], axis=-2)
        grad_before = grad_moved + matmul(rows_t, grad_z)
        return grad_before, (grad_z, grad_residual, grad_after)

    xs = (
        rows_transposed, keys_rated, standard, residual, outputs.d, inverse, along,
        inputs.restart, grads.z, grads.d,
    )  # fmt: skip
    grad_initial, (grad_z, grad_residual, grad_after) = jax.lax.scan(
        step, grads.final, xs, reverse=True
    )
    moved = 1 - inputs.restart
    return (
        Inputs(
            rows=matmul_transposed(grad_z, weights),
            rated_keys=-matmul_transposed(grad_after, outputs.d) * moved,
            offset=grad_residual,
            gain=jnp.sum(grad_residual * standard, axis=(0, -2), keepdims=True)[0],
            initial=grad_initial,
            fresh=jnp.sum(grad_after * inputs.restart, axis=0),
            restart=jnp.zeros_like(inputs.restart),
        ),
    )


linear_scan.defvjp(_linear_scan_fwd, _linear_scan_bwd)
