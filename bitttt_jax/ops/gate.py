"""Gates of gated linear units."""

from __future__ import annotations

import functools
from typing import Literal

import jax
import jax.numpy as jnp

from bitttt_jax import native

Activation = Literal["silu", "relu2", "gelu"]
"""`gelu` is the approximation by tanh."""

# Of many rows XLA's code goes together with what is next to it.
_KERNEL_ROWS = 16
_KERNEL_MULTIPLE = 16  # of values


def gated(
    gate: jax.Array,
    x: jax.Array,
    activation: Activation,
    *,
    implementation: native.Choice = "auto",
) -> jax.Array:
    """`activation(gate) * x`.

    Source: Shazeer, arXiv:2002.05202; So et al., arXiv:2109.08668 for the squared ReLU.

    Args:
      gate: `[..., D]`.
      x: what passes the gate, of the same shape and type.
      activation: of the gate.
      implementation: `cpu` takes few rows at a time, computes in float32, and is differentiable in
        reverse.

    Returns:
      `[..., D]` in the type of `x`.

    Raises:
      ConfigError: the implementation asked for doesn't run here.
    """
    fits = x.dtype in (jnp.float32, jnp.bfloat16) and x.dtype == gate.dtype
    fits &= x.shape == gate.shape and x.size > 0 and x.size % _KERNEL_MULTIPLE == 0
    fits = fits and x.size <= _KERNEL_ROWS * x.shape[-1]
    needs = f"at most {_KERNEL_ROWS} rows, and a multiple of {_KERNEL_MULTIPLE} values"
    if native.choose(implementation, fits, needs) == "cpu":
        return _native_gated(gate, x, activation)
    return _gated(gate, x, activation)


def _gated(gate: jax.Array, x: jax.Array, activation: Activation) -> jax.Array:
    if activation == "silu":
        return jax.nn.silu(gate) * x
    if activation == "relu2":
        return jax.nn.relu(gate) ** 2 * x
    return jax.nn.gelu(gate, approximate=True) * x


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _native_gated(gate: jax.Array, x: jax.Array, activation: Activation) -> jax.Array:
    result = jax.ShapeDtypeStruct(x.shape, x.dtype)
    call = jax.ffi.ffi_call("bitttt_gate", result, vmap_method="sequential")
    return call(gate, x, activation=activation)


def _native_gated_fwd(gate, x, activation):
    return _native_gated(gate, x, activation), (gate, x)


def _native_gated_bwd(activation, residuals, grad):
    return jax.vjp(functools.partial(_gated, activation=activation), *residuals)[1](grad)


_native_gated.defvjp(_native_gated_fwd, _native_gated_bwd)
