"""Tensors of files as the arrays that the layers take."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np

from bitttt_jax.config import ModelConfig
from bitttt_jax.data.memory import Arena
from bitttt_jax.interop import ternary_rows
from bitttt_jax.interop.foreign import WeightType
from bitttt_jax.ops import tables
from bitttt_jax.ternary.packing import PackedTernary, pack, quantize_and_pack

_TILE = 256  # a side of what is transposed at once: half a cache of 2-byte values

_quantize_table = jax.jit(tables.quantize_table)
_make_ternary = jax.jit(lambda rows_NK: quantize_and_pack(rows_NK.T))
_pack = jax.jit(lambda codes_NK, scale: pack(codes_NK.T, scale))


@dataclasses.dataclass(frozen=True)
class Arrays:
    """Makes a model's arrays in one type; those of a model share large buffers."""

    weights: WeightType
    """Of what isn't ternary."""
    arena: Arena = dataclasses.field(default_factory=Arena)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of weights that aren't quantised."""
        return np.dtype(np.float32 if self.weights == "float32" else ml_dtypes.bfloat16)

    def computed(self, config: ModelConfig) -> ModelConfig:
        """A model in the type that fits such weights."""
        is_full = self.weights == "float32"
        return dataclasses.replace(config, compute_dtype="float32" if is_full else "bfloat16")

    def kernel(self, rows_NK: np.ndarray) -> jax.Array | tables.QuantizedTable:
        """A projection of K inputs and N outputs, which files hold as rows of inputs."""
        if self.weights == "int8":
            return _quantize_table(rows_NK)
        rows, (N, K) = rows_NK.astype(self.dtype, copy=False), rows_NK.shape
        kernel_KN = self.arena.empty((K, N), self.dtype)
        # As integers: numpy copies types of its own faster. In tiles: both sides stay in the cache.
        number = np.uint16 if self.dtype.itemsize == 2 else np.uint32
        source, target = rows.view(number), kernel_KN.view(number)
        for n in range(0, N, _TILE):
            for k in range(0, K, _TILE):
                target[k : k + _TILE, n : n + _TILE] = source[n : n + _TILE, k : k + _TILE].T
        return jax.device_put(kernel_KN)

    def table(self, rows_VD: np.ndarray) -> jax.Array | tables.QuantizedTable:
        """An embedding."""
        if self.weights == "int8":
            return _quantize_table(rows_VD)
        if rows_VD.dtype == self.dtype:
            return jax.device_put(rows_VD)
        table_VD = self.arena.empty(rows_VD.shape, self.dtype)
        table_VD[...] = rows_VD
        return jax.device_put(table_VD)

    def packed_rows(self, packed_RK: np.ndarray, N: int, scale: float) -> PackedTernary:
        """A projection of N outputs that Hugging Face has packed.

        Raises:
          ValueError: N isn't a multiple of 4, or a code stands for no weight.
        """
        if N % ternary_rows.OUTPUTS_TOGETHER:
            raise ValueError(f"its {N} outputs don't share whole bytes")
        codes = jax.device_put(ternary_rows.to_i2_s(packed_RK, self.arena))
        return PackedTernary(codes, jnp.float32(scale), (packed_RK.shape[1], N), "i2_s")


def vector(values: np.ndarray) -> jax.Array:
    """What stays in float32."""
    return jnp.asarray(values, jnp.float32)


def make_ternary(rows_NK: np.ndarray) -> PackedTernary:
    """Packs latent weights at the scale of their mean magnitude."""
    return _make_ternary(rows_NK)


def pack_codes(rows_NK: np.ndarray, scale: float) -> PackedTernary:
    """Packs weights that are -1, 0 and 1 already.

    Raises:
      ValueError: others are among them.
    """
    codes_NK = rows_NK.astype(np.int8)
    if np.any(codes_NK != rows_NK) or np.any(np.abs(codes_NK) > 1):
        raise ValueError("it has a scale, but other values than -1, 0 and 1")
    return _pack(codes_NK, np.float32(scale))
