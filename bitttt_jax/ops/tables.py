"""Embedding tables and output heads: as floats, as int8 rows, or in groups of a row as int4, once
or twice."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from bitttt_jax import native
from bitttt_jax.ops import quantize
from bitttt_jax.ops.precision import widen
from bitttt_jax.ops.product import matmul_transposed

_KERNEL_WIDTH = 64  # of which the native kernel for int8 takes multiples
_KERNEL_ROWS = 16  # of activations that aren't rounded

GROUP = 32
"""Values that share a scale in a `GroupedTable`."""
_BLOCK_GROUPS = 8
_BLOCK = _BLOCK_GROUPS * GROUP
_ROWS_AT_ONCE = 1024
# Of the scale at which a group's largest magnitude is the lowest code.
_SCALES_TRIED = np.linspace(0.7, 1.1, 17, dtype=np.float32)

# Of a table in two halves: fine steps in a coarse one, the part of the products whose second halves
# are read, and how many at least.
_FINE_STEPS = 16
_REFINED_PART, _LEAST_REFINED = 64, 256


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class QuantizedTable:
    """A `[V, D]` table whose rows are int8 times a scale: a pytree of two arrays."""

    codes: jax.Array
    """int8 `[V, D]`."""
    scale: jax.Array
    """float32 `[V]`."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class GroupedTable:
    """A `[V, D]` table of 4-bit codes from -8 to 7, each group of a row with a scale.

    Rows are padded to whole blocks of 8 groups. In the 128 bytes of a block, the two halves hold
    the values 0 to 15 and 16 to 31 of every group; byte 32 h + 4 g + r of a half holds, from its
    lowest bits up, the values 4 h + r and 8 + 4 h + r of group g (h being 0 or 1), each plus 8. So
    a vector's sums of four products belong to one group each.
    """

    codes: jax.Array
    """uint8 `[V, 128 * ceil(D / 256)]`."""
    scale: jax.Array
    """bfloat16 `[V, 8 * ceil(D / 256)]`."""
    width: int = dataclasses.field(metadata={"static": True})
    """D."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class RefinedTable:
    """A table of int4 codes, and what they left: together 8 bits a value, of which a product with
    few rows reads all first halves, and the second ones of the largest products only."""

    coarse: GroupedTable
    """The first halves: values of a group are `scale * (coarse + fine / 16)`."""
    fine: jax.Array
    """The second halves, from -8 to 7, as `coarse.codes` lie."""


Table = jax.Array | QuantizedTable | GroupedTable | RefinedTable


def is_quantized(table: object) -> bool:
    """Whether a table is one of integers."""
    return isinstance(table, QuantizedTable | GroupedTable | RefinedTable)


def quantize_table(table_VD: jax.Array) -> QuantizedTable:
    """Rounds each row to int8 at the scale of its largest magnitude.

    >>> quantize_table(jnp.array([[1.0, -0.5]])).codes.tolist()
    [[127, -64]]
    """
    codes, scale = quantize.int8_codes(table_VD)
    return QuantizedTable(codes, scale[:, 0])


def quantize_groups(table_VD: jax.Array) -> GroupedTable:
    """Rounds each group of a row to int4, at the scale that leaves the smallest squared error.

    >>> table = quantize_groups(jnp.arange(-8.0, 8.0)[None])
    >>> look_up(table, jnp.array([0])).tolist() == [list(range(-8, 8))]
    True
    """
    codes, scale = _codes_of_groups(table_VD, steps=1)
    return GroupedTable(_pack_groups(codes), scale, table_VD.shape[1])


def refine_groups(table_VD: jax.Array) -> RefinedTable:
    """Rounds each group of a row to 8 bits in two halves, at the scale with the smallest error.

    >>> table = refine_groups(jnp.linspace(-1, 0.5, 32)[None])
    >>> float(jnp.abs(look_up(table, jnp.array([0])) - jnp.linspace(-1, 0.5, 32)).max()) < 0.005
    True
    """
    codes, scale = _codes_of_groups(table_VD, steps=_FINE_STEPS)
    coarse = (codes + 8) >> 4
    table = GroupedTable(_pack_groups(coarse), scale, table_VD.shape[1])
    return RefinedTable(table, _pack_groups(codes - 16 * coarse))


def _codes_of_groups(table_VD: jax.Array, steps: int) -> tuple[jax.Array, jax.Array]:
    """int16 codes `[V, groups, GROUP]` in fractions of a step, and scales `[V, groups]`."""
    V, D = table_VD.shape
    padded = jnp.pad(widen(table_VD), ((0, 0), (0, -D % _BLOCK)))
    groups = padded.reshape(V, padded.shape[1] // GROUP, GROUP)
    of_row = functools.partial(_codes_of_row, steps=steps)
    return jax.lax.map(of_row, groups, batch_size=_ROWS_AT_ONCE)


def _pack_groups(codes: jax.Array) -> jax.Array:
    """Codes from -8 to 7 as a `GroupedTable` has them."""
    # [V, blocks, groups, halves, low and high, h, r]
    fields = (codes + 8).astype(jnp.uint8).reshape(len(codes), -1, _BLOCK_GROUPS, 2, 2, 2, 4)
    fields = fields.transpose(0, 1, 3, 4, 5, 2, 6)
    packed = fields[:, :, :, 0] | fields[:, :, :, 1] << 4
    return packed.reshape(len(codes), -1)


def _codes_of_row(values_GK: jax.Array, *, steps: int) -> tuple[jax.Array, jax.Array]:
    """int16 codes and bfloat16 scales of a row's groups."""
    place = jnp.argmax(jnp.abs(values_GK), axis=-1, keepdims=True)
    extreme = jnp.take_along_axis(values_GK, place, axis=-1)[:, 0]
    tried_NG = (extreme / -8 * _SCALES_TRIED[:, None]).astype(jnp.bfloat16)
    # Each half from -8 to 7.
    lowest, highest = (-8, 7) if steps == 1 else (-8 * steps - 8, 7 * steps + 7)

    def round_at(scale_G):
        step = scale_G.astype(jnp.float32)[:, None] / steps
        inverse = jnp.where(step == 0, 0, 1 / jnp.where(step == 0, 1, step))
        codes = jnp.clip(jnp.round(values_GK * inverse), lowest, highest)
        return codes.astype(jnp.int16), jnp.sum((codes * step - values_GK) ** 2, axis=-1)

    codes_NGK, error_NG = jax.vmap(round_at)(tried_NG)
    best = jnp.argmin(error_NG, axis=0)
    codes = jnp.take_along_axis(codes_NGK, best[None, :, None], axis=0)[0]
    return codes, jnp.take_along_axis(tried_NG, best[None], axis=0)[0]


def _group_values(table: GroupedTable | RefinedTable, index: jax.Array | None = None) -> jax.Array:
    """Float32 values `[..., D]` of rows, all of them without indices."""
    if isinstance(table, RefinedTable):
        fine = dataclasses.replace(table.coarse, codes=table.fine)
        return _group_values(table.coarse, index) + _group_values(fine, index) / _FINE_STEPS
    codes, scale = table.codes, table.scale
    if index is not None:
        codes, scale = jnp.take(codes, index, axis=0), jnp.take(scale, index, axis=0)
    halves = codes.reshape(*codes.shape[:-1], -1, 2, 2, _BLOCK_GROUPS, 4)
    fields = jnp.stack([halves & 15, halves >> 4], axis=-4).astype(jnp.int8) - 8
    # [..., blocks, halves, low and high, h, groups, r]
    lead = fields.ndim - 6
    order = (*range(lead + 1), lead + 4, lead + 1, lead + 2, lead + 3, lead + 5)
    groups = fields.transpose(order).reshape(*scale.shape, GROUP)
    values = groups.astype(jnp.float32) * scale.astype(jnp.float32)[..., None]
    return values.reshape(*codes.shape[:-1], -1)[..., : table.width]


def look_up(table: Table, index: jax.Array) -> jax.Array:
    """Rows of a table: `[..., D]` for indices `[...]`."""
    if isinstance(table, QuantizedTable):
        rows = jnp.take(table.codes, index, axis=0).astype(jnp.float32)
        return rows * jnp.take(table.scale, index)[..., None]
    if isinstance(table, GroupedTable | RefinedTable):
        return _group_values(table, index)
    values: jax.Array = table
    if values.dtype == jnp.bfloat16:
        # XLA's CPU backend makes floats of the rows that are taken, but in front of a loop of the
        # whole table, unless that depends on something inside.
        values, index = jax.lax.optimization_barrier((values, index))
    return jnp.take(values, index, axis=0)


def project(x_ND: jax.Array, table: Table, *, implementation: native.Choice = "auto") -> jax.Array:
    """`x @ table^T` in float32.

    With a quantised table `x` is rounded to int8 a row too, and the integers are multiplied and
    summed exactly, those of each group where there are groups. The native kernel multiplies up to
    15 rows with the first halves of a `RefinedTable`, and with the second ones only where products
    are among the largest 64th: the others differ by what 4 bits leave.

    Args:
      x_ND: hidden states.
      table: `[V, D]`; as floats it is rounded to the type of `x_ND`.
      implementation: of the product with a quantised table.

    Returns:
      `[N, V]`.

    Raises:
      ConfigError: the implementation asked for doesn't run here.
    """
    if isinstance(table, GroupedTable | RefinedTable):
        return _project_groups(x_ND, table, implementation)
    if not isinstance(table, QuantizedTable):
        return matmul_transposed(x_ND, table.astype(x_ND.dtype))
    (N, D), V = x_ND.shape, table.codes.shape[0]
    fits = D % _KERNEL_WIDTH == 0 and x_ND.dtype in (jnp.float32, jnp.bfloat16)
    needs = f"float32 or bfloat16 and a width that is a multiple of {_KERNEL_WIDTH}"
    if native.choose(implementation, fits, needs) == "cpu":
        return _native_product("table", x_ND, N * (D + 4), V, (table.codes, table.scale))
    codes, scale = quantize.int8_codes(widen(x_ND))
    sums = jax.lax.dot_general(
        codes, table.codes, (((1,), (1,)), ((), ())), preferred_element_type=jnp.int32
    )
    return sums.astype(jnp.float32) * (scale * table.scale)


def multiply(x_ND: jax.Array, table: QuantizedTable) -> jax.Array:
    """`x @ table^T` in float32 of activations that aren't rounded.

    What weights of other programs' models want, whose activations have outliers: `project` costs
    them several per cent of perplexity.

    Args:
      x_ND: activations.
      table: its rows are the outputs.

    Returns:
      `[N, V]`.
    """
    N, V = x_ND.shape[0], table.codes.shape[0]
    fits = 0 < N <= _KERNEL_ROWS and x_ND.dtype in (jnp.float32, jnp.bfloat16)
    needs = f"at most {_KERNEL_ROWS} rows of float32 or bfloat16"
    if native.choose("auto", fits, needs) == "cpu":
        result = jax.ShapeDtypeStruct((N, V), jnp.float32)
        call = jax.ffi.ffi_call("bitttt_int8_rows_matmul", result, vmap_method="sequential")
        return call(x_ND, table.codes, table.scale)
    return matmul_transposed(x_ND, table.codes.astype(x_ND.dtype)) * table.scale


def _project_groups(
    x_ND: jax.Array, table: GroupedTable | RefinedTable, implementation: native.Choice
) -> jax.Array:
    fits = x_ND.dtype in (jnp.float32, jnp.bfloat16)
    if native.choose(implementation, fits, "float32 or bfloat16") == "cpu":
        coarse = table.coarse if isinstance(table, RefinedTable) else table
        V, row_bytes = coarse.codes.shape
        # Codes, their sums in each block, and the scale of each row.
        workspace = len(x_ND) * (2 * row_bytes + row_bytes // 2 + 4)
        parts: tuple[jax.Array, ...] = (coarse.codes, coarse.scale)
        if isinstance(table, GroupedTable):
            return _native_product("grouped", x_ND, workspace, V, parts)
        largest = np.int64(max(V // _REFINED_PART, _LEAST_REFINED))
        parts = (*parts, table.fine)
        return _native_product("refined", x_ND, workspace, V, parts, largest=largest)
    codes, scale = quantize.int8_codes(widen(x_ND))
    return matmul_transposed(codes.astype(jnp.float32), _group_values(table)) * scale


def _native_product(
    name: str, x_ND: jax.Array, workspace: int, V: int, table: tuple[jax.Array, ...], **attributes
) -> jax.Array:
    results = (
        jax.ShapeDtypeStruct((workspace,), jnp.uint8),
        jax.ShapeDtypeStruct((x_ND.shape[0], V), jnp.float32),
    )
    call = jax.ffi.ffi_call(f"bitttt_{name}_matmul", results, vmap_method="sequential")
    return call(x_ND, *table, **attributes)[1]
