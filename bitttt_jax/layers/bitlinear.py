"""The linear layer of BitNet b1.58."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from bitttt_jax.config import ModelConfig
from bitttt_jax.layers.norm import RMSNorm
from bitttt_jax.ops import product
from bitttt_jax.ternary.divided import Sharding
from bitttt_jax.ternary.latent import fake_quant_matmul, int8_matmul
from bitttt_jax.ternary.matmul import matmul
from bitttt_jax.ternary.packing import PackedTernary


class BitLinear(nn.Module):
    """`x @ kernel` with a ternary kernel and 8-bit inputs.

    The kernel is a parameter of latent float32 weights, or a `PackedTernary` in its place.

    Attributes:
      config: the model's; says how ternary products are computed.
      features: output width.
      ternary: False is an ordinary float product of the same parameters.
      sharding: how a packed kernel is divided over the devices of a mesh, as `distributed.rules`
        divides the latent one.
    """

    config: ModelConfig
    features: int
    ternary: bool
    sharding: Sharding = "columns"

    @nn.compact
    def __call__(self, x: jax.Array, strength: jax.Array | float = 1.0) -> jax.Array:
        """Maps `[..., D]` to `[..., features]` in the type of `x`.

        Args:
          x: inputs.
          strength: how far weights and activations are quantised, from 0 to 1 (`fake_quant` only).
        """
        if self.has_norm:
            x = RMSNorm(self.config.norm_eps, name="norm")(x)
        return _products(self, x, (self.kernel(x.shape[-1]),), strength)[0]

    @nn.compact
    def kernel(self, width: int) -> jax.Array | PackedTernary:
        """The weights `[width, features]`, latent or packed."""
        if isinstance(stored := self.variables.get("params", {}).get("kernel"), PackedTernary):
            return stored
        init = nn.initializers.normal(self.config.init_std)
        return self.param("kernel", init, (width, self.features), jnp.float32)

    @property
    def has_norm(self) -> bool:
        """Whether the layer normalises its input itself."""
        return self.ternary and self.config.ternary.inner_norm


def apply_together(
    layers: tuple[BitLinear, ...], x: jax.Array, strength: jax.Array | float = 1.0
) -> tuple[jax.Array, ...]:
    """Applies several layers to one input, which is quantised once.

    Args:
      layers: layers that differ in width and name only.
      x: `[..., D]`.
      strength: as in `BitLinear`.
    """
    if layers[0].has_norm:
        return tuple(layer(x, strength) for layer in layers)
    kernels = tuple(layer.kernel(x.shape[-1]) for layer in layers)
    return _products(layers[0], x, kernels, strength)


def _products(layer: BitLinear, x, kernels, strength):
    rows, how = x.reshape(-1, x.shape[-1]), layer.config.ternary
    if isinstance(kernels[0], PackedTernary):
        ys = matmul(rows, kernels, sharding=layer.sharding)
    elif not layer.ternary:
        ys = product.shared_matmul(rows, tuple(kernel.astype(x.dtype) for kernel in kernels))
    elif how.path == "int8":
        ys = int8_matmul(rows, kernels)
    else:
        ys = fake_quant_matmul(
            rows, kernels, strength=strength, quantize_activations=how.activations
        )
    return tuple(y.astype(x.dtype).reshape(*x.shape[:-1], y.shape[-1]) for y in ys)
