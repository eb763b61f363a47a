"""Short causal depthwise convolution with a carried tail."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P

from bitttt_jax import native
from bitttt_jax.config import BATCH_AXES, TENSOR_AXIS
from bitttt_jax.ops.partition import over_mesh, shared
from bitttt_jax.ops.precision import widen

_MOST_TAPS, _LANES = 8, 16  # of the native kernel


def causal_convolution(
    x_BTD: jax.Array,
    kernel_WD: jax.Array,
    bias_D: jax.Array,
    position_BT: jax.Array,
    tail_BWD: jax.Array | None = None,
    *,
    implementation: native.Choice = "auto",
) -> jax.Array:
    """Each channel's weighted sum of its last W values, never reaching before position 0.

    Args:
      x_BTD: inputs.
      kernel_WD: taps; the last one weighs the current token.
      bias_D: added to every output.
      position_BT: each token's position in its document: taps before the document are 0.
      tail_BWD: the W - 1 inputs before `x_BTD`; zeros when None.
      implementation: where there is no tail; `cpu` is differentiable once, in reverse.

    Returns:
      `[B, T, D]` in the type of `x_BTD`, computed in float32.

    Raises:
      ConfigError: the implementation asked for doesn't run here.
    """
    if tail_BWD is None:
        (W, D), dtype = kernel_WD.shape, x_BTD.dtype
        fits = D % _LANES == 0 and W <= _MOST_TAPS and dtype in (jnp.float32, jnp.bfloat16)
        needs = f"at most {_MOST_TAPS} taps and a width that is a multiple of {_LANES}"
        if native.choose(implementation, fits, needs, on_mesh=True) == "cpu":
            rows = shared(BATCH_AXES, x_BTD.shape[0])
            channels = shared(TENSOR_AXIS, D // _LANES)
            specs = (P(rows, None, channels), P(None, channels), P(channels), P(rows))
            convolve = over_mesh(_convolve_on_cpu, specs, specs[0])
            return convolve(x_BTD, kernel_WD, bias_D, position_BT.astype(jnp.int32))
    reach, length = kernel_WD.shape[0] - 1, x_BTD.shape[1]
    x = widen(x_BTD)
    if tail_BWD is None:
        padded = jnp.pad(x, ((0, 0), (reach, 0), (0, 0)))
    else:
        padded = jnp.concatenate([widen(tail_BWD), x], axis=1)
    y = x * kernel_WD[reach] + bias_D
    for back in range(1, reach + 1):
        shifted = padded[:, reach - back : reach - back + length]
        inside = (position_BT >= back)[:, :, None]
        y += jnp.where(inside, shifted, 0.0) * kernel_WD[reach - back]
    return y.astype(x_BTD.dtype)


@jax.custom_vjp
def _convolve_on_cpu(x_BTD, kernel_WD, bias_D, position_BT):
    """XLA's fusions of this take several times as long: `native/src/convolution.cc`."""
    result = jax.ShapeDtypeStruct(x_BTD.shape, x_BTD.dtype)
    call = jax.ffi.ffi_call("bitttt_convolution_forward", result, vmap_method="sequential")
    return call(x_BTD, kernel_WD, bias_D, position_BT)


def _convolve_on_cpu_fwd(x_BTD, kernel_WD, bias_D, position_BT):
    y_BTD = _convolve_on_cpu(x_BTD, kernel_WD, bias_D, position_BT)
    return y_BTD, (x_BTD, kernel_WD, position_BT)


def _convolve_on_cpu_bwd(residuals, grad_BTD):
    x_BTD, kernel_WD, position_BT = residuals
    (B, _, D), W = x_BTD.shape, kernel_WD.shape[0]
    results = (
        jax.ShapeDtypeStruct(x_BTD.shape, x_BTD.dtype),
        jax.ShapeDtypeStruct((B, W, D), jnp.float32),
        jax.ShapeDtypeStruct((B, D), jnp.float32),
    )
    call = jax.ffi.ffi_call("bitttt_convolution_backward", results, vmap_method="sequential")
    grad_x, grad_kernel, grad_bias = call(x_BTD, kernel_WD, position_BT, grad_BTD)
    no_gradient = np.zeros(position_BT.shape, jax.dtypes.float0)
    return grad_x, jnp.sum(grad_kernel, axis=0), jnp.sum(grad_bias, axis=0), no_gradient


_convolve_on_cpu.defvjp(_convolve_on_cpu_fwd, _convolve_on_cpu_bwd)


def next_tail(x_BTD: jax.Array, length_B: jax.Array, tail_BWD: jax.Array) -> jax.Array:
    """The last W - 1 inputs after the first `length_B` tokens of `x_BTD` were read.

    Args:
      x_BTD: inputs, valid in each row up to its length.
      length_B: number of valid tokens.
      tail_BWD: the W - 1 inputs before `x_BTD`.
    """
    padded = jnp.concatenate([tail_BWD, x_BTD.astype(tail_BWD.dtype)], axis=1)
    index = length_B[:, None] + jnp.arange(tail_BWD.shape[1])
    return jnp.take_along_axis(padded, index[:, :, None], axis=1)
