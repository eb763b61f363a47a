"""The product of activations and packed ternary weights: one call over several kernels."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from bitttt_jax import native
from bitttt_jax.errors import ConfigError
from bitttt_jax.ternary.kernels import cpu, pallas_tpu, xla
from bitttt_jax.ternary.packing import PackedTernary, unpack

Choice = native.Choice | Literal["pallas_tpu"]

_KERNELS = {"xla": xla.matmul, "cpu": cpu.matmul, "pallas_tpu": pallas_tpu.matmul}


def matmul(
    x: jax.Array,
    weights: Sequence[PackedTernary],
    *,
    implementation: Choice = "auto",
) -> tuple[jax.Array, ...]:
    """Products of activations, rounded to int8 a row, and ternary weights.

    The integers are multiplied and summed exactly, then scaled in float32, as in
    `latent.int8_matmul` (arXiv:2402.17764, section 2): implementations differ by the last float's
    rounding at most.
    Differentiable in `x` once, in reverse, straight through the rounding; the weights are
    constants.

    Args:
      x: activations `[M, K]`.
      weights: of K inputs each. `cpu` wants the layout `i2_s`, `pallas_tpu` `rows4`.
      implementation: what computes it; `auto` takes a kernel where one fits, on a single device.

    Returns:
      `[M, N]` in the type of `x` for each of the weights.

    Raises:
      ConfigError: the implementation asked for doesn't run here.
      ValueError: shapes that don't fit.

    >>> from bitttt_jax.ternary.packing import quantize_and_pack
    >>> matmul(jnp.ones((1, 3)), [quantize_and_pack(jnp.ones((3, 2)))])[0].tolist()
    [[3.0, 3.0]]
    """
    weights = tuple(weights)
    for weight in weights:
        if x.ndim != 2 or weight.codes.ndim != 2 or x.shape[1] != weight.shape[0]:
            raise ValueError(f"x is {x.shape} and a weight {weight.shape}")
    return _matmul(x, weights, _choose(implementation, x, weights))


def _choose(asked: Choice, x: jax.Array, weights: tuple[PackedTernary, ...]) -> str:
    if asked == "pallas_tpu" or (asked == "auto" and jax.default_backend() == "tpu"):
        # The partitioner can't divide a kernel.
        is_one_device = jax.sharding.get_abstract_mesh().size <= 1
        if is_one_device and all(map(pallas_tpu.takes, weights)):
            return "pallas_tpu"
        if asked == "pallas_tpu":
            raise ConfigError(
                "the Pallas kernel can't be used here",
                "it needs a single device, and weights in the layout `rows4` whose widths are "
                "multiples of 128",
                "implementation=auto",
            )
    fits = x.dtype in cpu.DTYPES and all(weight.layout == "i2_s" for weight in weights)
    needs = "float32 or bfloat16 activations and weights in the layout `i2_s`"
    return native.choose(asked, fits, needs)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _matmul(x, weights, implementation):
    return _KERNELS[implementation](x, weights)


def _matmul_fwd(x, weights, implementation):
    return _matmul(x, weights, implementation), weights


def _matmul_bwd(implementation, weights, grads):
    del implementation
    grad_x = sum(
        jnp.matmul(g, unpack(w).T.astype(g.dtype), preferred_element_type=jnp.float32) * w.scale
        for g, w in zip(grads, weights, strict=True)
    )
    return grad_x.astype(grads[0].dtype), jax.tree.map(_no_gradient, weights)


def _no_gradient(leaf: jax.Array) -> jax.Array | np.ndarray:
    if jnp.issubdtype(leaf.dtype, jnp.inexact):
        return jnp.zeros_like(leaf)
    return np.zeros(leaf.shape, jax.dtypes.float0)


_matmul.defvjp(_matmul_fwd, _matmul_bwd)
