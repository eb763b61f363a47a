"""Normalisations, computed in float32 (float64 for such inputs)."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

from bitttt_jax import native
from bitttt_jax.ops.precision import widen

# Of many rows XLA's code is as fast, and goes together with what is next to it.
_KERNEL_ROWS = 16
_KERNEL_WIDTH = 16  # of which the native kernel takes multiples


def rms_norm(
    x: jax.Array, scale: jax.Array, eps: float, *, implementation: native.Choice = "auto"
) -> jax.Array:
    """Divides the last dimension by its root mean square, then multiplies by `scale`.

    Source: Zhang and Sennrich, arXiv:1910.07467.

    Args:
      x: `[..., D]`.
      scale: broadcastable to `x`.
      eps: added to the mean square.
      implementation: `cpu` takes few rows at a time, and is differentiable in reverse.

    Returns:
      `[..., D]` in the type of `x`.

    Raises:
      ConfigError: the implementation asked for doesn't run here.
    """
    fits = x.dtype in (jnp.float32, jnp.bfloat16) and scale.dtype == jnp.float32
    fits &= x.shape[-1:] == scale.shape and scale.size % _KERNEL_WIDTH == 0
    fits &= 0 < x.size <= _KERNEL_ROWS * x.shape[-1]
    needs = f"at most {_KERNEL_ROWS} rows and a width that is a multiple of {_KERNEL_WIDTH}"
    if native.choose(implementation, fits, needs) == "cpu":
        return _native_rms_norm(x, scale, eps)
    return _rms_norm(x, scale, eps)


def _rms_norm(x: jax.Array, scale: jax.Array, eps: float) -> jax.Array:
    x32 = widen(x)
    inverse = jax.lax.rsqrt(jnp.mean(x32 * x32, axis=-1, keepdims=True) + eps)
    return (x32 * inverse * scale).astype(x.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _native_rms_norm(x: jax.Array, scale: jax.Array, eps: float) -> jax.Array:
    result = jax.ShapeDtypeStruct(x.shape, x.dtype)
    call = jax.ffi.ffi_call("bitttt_rms_norm", result, vmap_method="sequential")
    return call(x, scale, eps=np.float32(eps))


def _native_rms_norm_fwd(x, scale, eps):
    return _native_rms_norm(x, scale, eps), (x, scale)


def _native_rms_norm_bwd(eps, residuals, grad):
    return jax.vjp(functools.partial(_rms_norm, eps=eps), *residuals)[1](grad)


_native_rms_norm.defvjp(_native_rms_norm_fwd, _native_rms_norm_bwd)


def layer_norm(x: jax.Array, scale: jax.Array, bias: jax.Array, eps: float) -> jax.Array:
    """Standardises the last dimension, then multiplies by `scale` and adds `bias`.

    Source: Ba et al., arXiv:1607.06450.

    Args:
      x: `[..., D]`.
      scale: broadcastable to `x`.
      bias: broadcastable to `x`.
      eps: added to the variance.

    Returns:
      `[..., D]` in the type of `x`.
    """
    x32 = widen(x)
    centred = x32 - jnp.mean(x32, axis=-1, keepdims=True)
    inverse = jax.lax.rsqrt(jnp.mean(centred * centred, axis=-1, keepdims=True) + eps)
    return (centred * inverse * scale + bias).astype(x.dtype)
