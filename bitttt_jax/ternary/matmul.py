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
from bitttt_jax.ternary import divided
from bitttt_jax.ternary.divided import Kernel, Sharding
from bitttt_jax.ternary.kernels import cpu, pallas_gpu, pallas_tpu, xla
from bitttt_jax.ternary.packing import PackedTernary, unpack

Choice = native.Choice | Literal["pallas_tpu", "pallas_gpu"]

_KERNELS = {
    "xla": Kernel(xla.matmul, xla.sums),
    "cpu": Kernel(cpu.matmul, cpu.sums),
    "pallas_tpu": Kernel(pallas_tpu.matmul, pallas_tpu.sums),
    "pallas_gpu": Kernel(pallas_gpu.matmul, pallas_gpu.sums),
}
_PALLAS = {"pallas_tpu": pallas_tpu, "pallas_gpu": pallas_gpu}


def matmul(
    x: jax.Array,
    weights: Sequence[PackedTernary],
    *,
    implementation: Choice = "auto",
    sharding: Sharding | None = None,
) -> tuple[jax.Array, ...]:
    """Products of activations, rounded to int8 a row, and ternary weights.

    The integers are multiplied and summed exactly, then scaled in float32, as in
    `latent.int8_matmul` (arXiv:2402.17764, section 2): implementations differ by the last float's
    rounding at most.
    Differentiable in `x` once, in reverse, straight through the rounding; the weights are
    constants.

    Args:
      x: activations `[M, K]`.
      weights: of K inputs each. `cpu` and `pallas_gpu` want the layout `i2_s`, `pallas_tpu`
        `rows4`.
      implementation: what computes it; `auto` takes a kernel where one fits.
      sharding: how weights are divided over the axis `tensor` of a mesh, by their outputs (columns)
        or their inputs (rows); the rows of `x` are divided over the other axes. Weights that the
        devices can't share evenly are multiplied by each of them. Nothing changes on a single
        device. None leaves a mesh to XLA's partitioner, which can't divide kernels.

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
    if jax.sharding.get_abstract_mesh().size <= 1:
        sharding = None
    shares = weights if sharding is None else divided.parts(weights, sharding) or weights
    return _matmul(x, weights, _choose(implementation, x, shares, sharding), sharding)


def _choose(
    asked: Choice, x: jax.Array, weights: tuple[PackedTernary, ...], sharding: Sharding | None
) -> str:
    """The implementation of a device's part of the weights."""
    wanted = f"pallas_{native.platform()}" if asked == "auto" else asked
    if kernel := _PALLAS.get(wanted):
        # The partitioner can't divide a kernel.
        is_own = sharding is not None or jax.sharding.get_abstract_mesh().size <= 1
        if is_own and all(map(kernel.takes, weights)):
            return wanted
        if asked == "pallas_tpu" or asked == "pallas_gpu":
            raise ConfigError(
                "the Pallas kernel can't be used here",
                f"it needs a single device or a sharding, and {kernel.NEEDS}",
                "implementation=auto",
            )
    assert asked != "pallas_tpu" and asked != "pallas_gpu"
    fits = x.dtype in cpu.DTYPES and all(weight.layout == "i2_s" for weight in weights)
    needs = "float32 or bfloat16 activations and weights in the layout `i2_s`"
    return native.choose(asked, fits, needs, on_mesh=sharding is not None)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _matmul(x, weights, implementation, sharding):
    kernel = _KERNELS[implementation]
    if sharding is None:
        return kernel.matmul(x, weights)
    return divided.matmul(x, weights, kernel, sharding)


def _matmul_fwd(x, weights, implementation, sharding):
    return _matmul(x, weights, implementation, sharding), weights


def _matmul_bwd(implementation, sharding, weights, grads):
    del implementation, sharding
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
