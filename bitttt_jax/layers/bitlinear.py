"""The linear layer of BitNet b1.58."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from bitttt_jax.config import ModelConfig
from bitttt_jax.layers.norm import RMSNorm
from bitttt_jax.ops import product, tables
from bitttt_jax.ops.tables import QuantizedTable
from bitttt_jax.ternary.divided import Sharding
from bitttt_jax.ternary.latent import fake_quant_matmul, int8_matmul
from bitttt_jax.ternary.matmul import matmul
from bitttt_jax.ternary.packing import PackedTernary

Kernel = jax.Array | PackedTernary | QuantizedTable


class BitLinear(nn.Module):
    """`x @ kernel` with a ternary kernel and 8-bit inputs.

    The kernel is a parameter of latent float32 weights, or stored for inference in its place: a
    `PackedTernary`, or a `QuantizedTable` whose rows are the outputs.

    Attributes:
      config: the model's; says how ternary products are computed.
      features: output width.
      ternary: False is an ordinary float product of the same parameters.
      sharding: how a packed kernel is divided over the devices of a mesh, as `distributed.rules`
        divides the latent one.
      use_bias: whether a bias is added to the product.
    """

    config: ModelConfig
    features: int
    ternary: bool
    sharding: Sharding = "columns"
    use_bias: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, strength: jax.Array | float = 1.0) -> jax.Array:
        """Maps `[..., D]` to `[..., features]` in the type of `x`.

        Args:
          x: inputs.
          strength: how far weights and activations are quantised, from 0 to 1 (`fake_quant` only).
        """
        if self.has_norm:
            eps = self.config.ternary.inner_norm_eps or self.config.norm_eps
            x = RMSNorm(eps, name="norm")(x)
        kernel, bias = self.weights(x.shape[-1])
        return _products(self, x, (kernel,), (bias,), strength)[0]

    @nn.compact
    def weights(self, width: int) -> tuple[Kernel, jax.Array | None]:
        """The kernel `[width, features]`, and the bias where there is one."""
        zeros, bias = nn.initializers.zeros, None
        if self.use_bias:
            bias = self.param("bias", zeros, (self.features,), jnp.float32)
        stored = self.variables.get("params", {}).get("kernel")
        if isinstance(stored, PackedTernary | QuantizedTable):
            return stored, bias
        init = nn.initializers.normal(self.config.init_std)
        return self.param("kernel", init, (width, self.features), jnp.float32), bias

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
    kernels, biases = zip(*(layer.weights(x.shape[-1]) for layer in layers), strict=True)
    return _products(layers[0], x, kernels, biases, strength)


def _products(layer: BitLinear, x, kernels, biases, strength):
    rows, how = x.reshape(-1, x.shape[-1]), layer.config.ternary
    if isinstance(kernels[0], PackedTernary):
        ys = matmul(rows, kernels, sharding=layer.sharding)
    elif isinstance(kernels[0], QuantizedTable):
        ys = tuple(tables.multiply(rows, kernel) for kernel in kernels)
    elif not layer.ternary:
        ys = product.shared_matmul(rows, tuple(kernel.astype(x.dtype) for kernel in kernels))
    elif how.path == "int8":
        ys = int8_matmul(rows, kernels)
    else:
        ys = fake_quant_matmul(
            rows, kernels, strength=strength, quantize_activations=how.activations
        )
    outputs = (y if bias is None else y + bias for y, bias in zip(ys, biases, strict=True))
    return tuple(y.astype(x.dtype).reshape(*x.shape[:-1], y.shape[-1]) for y in outputs)
