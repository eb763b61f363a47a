"""Our parameters as the tensors of other programs: dense rows, or packed ones.

Ternary weights that are written as floats are *masters*: other programs make them ternary again, at
the scale of their mean magnitude. They are chosen so that this gives exactly the same codes.
"""

from __future__ import annotations

from typing import Any, Literal

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np

from bitttt_jax.interop import ternary_rows
from bitttt_jax.models import packed, parameters
from bitttt_jax.ops import quantize, tables
from bitttt_jax.ternary.packing import PackedTernary, unpack

FloatType = Literal["bfloat16", "float32"]

_quantize = jax.jit(quantize.ternary_codes)
_look_up = jax.jit(tables.look_up)
_unpack = jax.jit(unpack)
_MOST_ROUNDS = 50


def numpy_type(dtype: FloatType) -> np.dtype[Any]:
    """The type in numpy."""
    return np.dtype(np.float32 if dtype == "float32" else ml_dtypes.bfloat16)


def weights(params: Any) -> dict[str, Any]:
    """Parameters by path, group by group; what is packed or quantised is one of them."""
    if "blocks" in params:
        params = parameters.unstack(params)
    leaves = jax.tree_util.tree_leaves_with_path(params, is_leaf=packed.is_whole)
    name = lambda path: jax.tree_util.keystr(path, simple=True, separator="/")
    return {name(path): leaf for path, leaf in leaves}


def dense_rows(weight: Any, dtype: FloatType) -> np.ndarray:
    """A float projection `[K, N]`, or a table of N rows, as rows `[N, K]`."""
    if tables.is_quantized(weight):
        weight_NK = np.asarray(_look_up(weight, jnp.arange(len(weight.codes))))
    else:
        weight_NK = np.asarray(weight).T
    return np.ascontiguousarray(weight_NK, numpy_type(dtype))


def dense_table(table: Any, dtype: FloatType) -> np.ndarray:
    """An embedding `[V, D]`, as it is or out of its integers."""
    if tables.is_quantized(table):
        return dense_rows(table, dtype)
    return np.asarray(table).astype(numpy_type(dtype))


def rounded(path: str, leaf: Any, dtype: FloatType) -> jax.Array | np.ndarray:
    """A parameter that isn't ternary, in our orientation and the type that it is written in."""
    if path == "embed/embedding":
        return dense_table(leaf, dtype)
    if tables.is_quantized(leaf):
        return dense_rows(leaf, dtype).T
    is_wide = parameters.is_projection(path) or parameters.is_table(path)
    return jnp.asarray(leaf, numpy_type(dtype) if is_wide else jnp.float32)


def ternary(weight: Any) -> tuple[np.ndarray, float]:
    """Codes -1, 0 and 1 as int8 `[N, K]`, and the scale, of a latent or packed weight."""
    if isinstance(weight, PackedTernary):
        return np.asarray(_unpack(weight)).T, float(weight.scale)
    codes, scale = _quantize(jnp.asarray(weight))
    return np.asarray(codes).T, float(scale)


def scale_of(weight: Any) -> float:
    """The scale of a latent or packed weight."""
    if isinstance(weight, PackedTernary):
        return float(weight.scale)
    return float(_quantize(jnp.asarray(weight))[1])


def packed_rows(weight: Any) -> np.ndarray:
    """Hugging Face's bytes `[N / 4, K]` of a latent or packed weight."""
    codes_NK, _ = ternary(weight)
    return ternary_rows.from_codes((codes_NK + 1).astype(np.uint8))


def masters(weight: Any, dtype: FloatType) -> np.ndarray:
    """Rows `[N, K]` of floats that become the weight's codes at the scale of their mean magnitude.

    Args:
      weight: latent: its values are kept, but for the few that rounding would take to another code.
        Packed: there are two magnitudes beside 0, next to each other in their type, as many of each
        as give the scale.
      dtype: of the rows.
    """
    codes_NK, scale = ternary(weight)
    if isinstance(weight, PackedTernary):
        return _two_magnitudes(codes_NK, scale, numpy_type(dtype))
    rows_NK = np.ascontiguousarray(np.asarray(weight).T, numpy_type(dtype))
    for _ in range(_MOST_ROUNDS):
        found_NK, mean = _quantize(jnp.asarray(rows_NK))
        wrong_NK = np.asarray(found_NK) != codes_NK
        if not wrong_NK.any():
            return rows_NK
        # Half the mean is the border between 0 and 1.
        magnitude = np.where(codes_NK[wrong_NK] == 0, 0.49, 0.51) * float(mean)
        rows_NK[wrong_NK] = np.copysign(magnitude, rows_NK[wrong_NK].astype(np.float32))
    raise ValueError("no masters have these codes")


def _two_magnitudes(codes_NK: np.ndarray, scale: float, dtype: np.dtype[Any]) -> np.ndarray:
    rows = codes_NK.astype(dtype).reshape(-1)
    places = np.flatnonzero(rows)
    if not len(places):
        return rows.reshape(codes_NK.shape)
    wanted = scale * rows.size  # of the sum of magnitudes
    below = np.float64(wanted / len(places)).astype(dtype)
    if float(below) * len(places) > wanted:
        below = np.nextafter(below, dtype.type(0))
    above = np.nextafter(below, dtype.type(np.inf))
    step = float(above) - float(below)
    more = round((wanted - float(below) * len(places)) / step)
    rows[places[:more]] *= above
    rows[places[more:]] *= below
    return rows.reshape(codes_NK.shape)
