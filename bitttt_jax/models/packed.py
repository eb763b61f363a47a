"""Packing a whole model's parameters for inference."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp

from bitttt_jax.config import ModelConfig
from bitttt_jax.errors import ConfigError
from bitttt_jax.models import parameters
from bitttt_jax.models.transformer import Params
from bitttt_jax.ops import tables
from bitttt_jax.ternary.packing import Layout, PackedTernary, convert_layout, quantize_and_pack

TableType = Literal["exact", "int8", "int4", "int4x2"]
"""How embedding and output head are stored: as they are computed, as int8 rows with scales, as int4
with a scale for every 32 values, or as int4 twice: 8 bits, of which choosing a token reads 4."""

# Compiled, and so traced once for all weights of a shape.
_pack = jax.jit(quantize_and_pack, static_argnums=1)
_QUANTIZE: dict[TableType, Callable[[jax.Array], tables.Table]] = {
    "int8": jax.jit(tables.quantize_table),
    "int4": jax.jit(tables.quantize_groups),
    "int4x2": jax.jit(tables.refine_groups),
}


def check_packable(config: ModelConfig) -> None:
    """Sees that the model's products are those of packed weights.

    Raises:
      ConfigError: nothing in it is ternary, or its activations aren't quantised.
    """
    how = config.ternary
    if not (how.mixer or how.mlp):
        raise ConfigError(
            "the model has no ternary weights to pack",
            "model.ternary.mixer and model.ternary.mlp are both off",
        )
    if not how.activations:
        raise ConfigError(
            "the model's activations aren't quantised (model.ternary.activations=False)",
            "packed weights are multiplied with 8-bit activations",
        )


def pack_params(
    config: ModelConfig, params: Params, layout: Layout = "i2_s", table: TableType = "exact"
) -> Params:
    """Parameters for inference.

    Ternary kernels become `PackedTernary`. Other kernels are rounded to the type that they are
    computed in, as are exact tables; what is computed in float32 stays as it is. So the model is
    the same function as before, unless tables are quantised.

    Args:
      config: the model's, which must be packable (`check_packable`).
      params: latent parameters, the groups stacked; or those of a model for inference.
      layout: of the ternary kernels.
      table: of the embedding and the output head.

    Returns:
      Parameters with a tree for each group.
    """

    def convert(path: str, leaf: Any) -> jax.Array | PackedTernary | tables.Table:
        if isinstance(leaf, PackedTernary):
            return convert_layout(leaf, layout)
        if tables.is_quantized(leaf):
            raise ConfigError(f"{path} is quantised already", fix="the model that it was made of")
        if parameters.is_ternary(config, path):
            return _pack(leaf, layout)
        if parameters.is_table(path) and table != "exact":
            return _QUANTIZE[table](leaf if path.startswith("embed/") else leaf.T)
        if parameters.is_projection(path) or parameters.is_table(path):
            return leaf.astype(config.compute_dtype)
        return jnp.asarray(leaf)

    unstacked = parameters.unstack(params) if "blocks" in params else params
    name = lambda path: jax.tree_util.keystr(path, simple=True, separator="/")
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: convert(name(path), leaf), unstacked, is_leaf=is_whole
    )


def is_whole(leaf: Any) -> bool:
    """Whether part of a tree of parameters is one parameter in packed or quantised form."""
    return isinstance(leaf, PackedTernary) or tables.is_quantized(leaf)


def byte_counts(params: Params) -> dict[str, int]:
    """Bytes of parameters: `ternary` (packed ones), `tables` (embedding and head) and `other`."""
    counts = {"ternary": 0, "tables": 0, "other": 0}
    for name, subtree in params.items():
        for leaf in jax.tree.leaves(subtree, is_leaf=is_whole):
            kind = "ternary" if isinstance(leaf, PackedTernary) else "other"
            kind = "tables" if name in ("embed", "head") else kind
            counts[kind] += sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(leaf))
    return counts
