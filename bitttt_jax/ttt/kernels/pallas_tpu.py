"""The dual form as a Pallas kernel for TPUs, forwards and backwards.

The fast weights stay on the chip from a sequence's first mini-batch to its last. A step of the grid
reads a group of mini-batches, and of all intermediate values only the weights before every group
are written to memory: the backward pass differentiates a group as it recomputes it. Several packs
of heads go through a step together, so that one has something to compute while another waits.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from bitttt_jax.ttt.inner import FastWeights
from bitttt_jax.ttt.kernels.inputs import Inputs, flatten, unflatten
from bitttt_jax.ttt.kernels.tpu_group import Shared, Tokens, Weights, read_group

_SUBLANES, _LANES = 8, 128
NEEDS = (
    "heads that fill 128 lanes (alone, side by side, or all of them within), and head widths, "
    "hidden widths and mini-batches that are multiples of 8"
)
"""What the kernel takes, for messages."""
_MOST_PACKS, _MOST_GROUP = {False: 6, True: 2}, 8
_VMEM_BYTES = 64 * 2**20


class _Sizes(NamedTuple):
    pack: int
    """Heads side by side."""
    packs: int
    """Of a step of the grid."""
    group: int
    """Mini-batches of a step."""


class _Operands(NamedTuple):
    """Arrays, their blocks in the kernel, or their gradients."""

    restart: Any
    """`[B, groups, 1, group]`."""
    tokens: Any
    """`Tokens`, `[B, T, H * K]` each."""
    token_scale: Any
    """`[b, 1]`; its gradient is `[B, steps of heads, b, 1]`."""
    norm_scale: Any
    """`[1, H * K]`, as is `norm_bias`; their gradients are `[B, 1, H * K]`."""
    norm_bias: Any
    fresh: Any
    """Weights by name, `[H / P, rows, P * columns]`; their gradients have B in front."""
    weights: Any
    """Initial ones, `[B, H / P, ...]`; for the backward pass those before every group."""


def _pack_size(heads: int, width: int) -> int:
    return max(p for p in range(1, heads + 1) if heads % p == 0 and p * width <= max(width, _LANES))


def takes(heads: int, width: int, hidden: int, mini_batch: int) -> bool:
    """Whether the kernel takes a model.

    Args:
      heads: number of heads on a device.
      width: of a head.
      hidden: of the inner MLP; 0 for the linear inner model.
      mini_batch: tokens of one.
    """
    pack = _pack_size(heads, width)
    fills = pack * width % _LANES == 0 or pack == heads
    return fills and all(n % _SUBLANES == 0 for n in (width, hidden, mini_batch))


def read_mini_batches(inputs: Inputs, hidden: int, group: int) -> tuple[jax.Array, jax.Array]:
    """As `kernels.cpu.read_mini_batches`, for models that the kernel `takes`.

    Devices other than TPUs interpret the kernel, slowly.

    Args:
      inputs: tokens, weights and norm.
      hidden: hidden width of the inner MLP; 0 for the linear inner model.
      group: mini-batches of a step of the grid, between two saved weights; at most 8, since a
        step's code is written out.
    """
    (B, T, H, K), N = inputs.query.shape, inputs.restart.shape[1]
    pack, _, group = sizes = _sizes(H, K, hidden, N, group)
    short = -N % group  # filled up with tokens of rate 0, from which nothing is learned
    shapes = _shapes(K, hidden)

    def lanes(x_BTHK):
        x_BTD = x_BTHK.reshape(B, T, H * K)
        return jnp.pad(x_BTD, ((0, 0), (0, short * T // N), (0, 0)))

    initial, fresh = (unflatten(flat, shapes) for flat in (inputs.initial, inputs.fresh))
    (initial, mean), (fresh, fresh_mean) = _centre(initial), _centre(fresh)
    restart = jnp.pad(inputs.restart, ((0, 0), (0, short))).astype(jnp.int32)
    rate = jnp.broadcast_to(inputs.rate[..., None], inputs.query.shape)
    operands = _Operands(
        restart=restart.reshape(B, -1, 1, group),
        tokens=Tokens(*map(lanes, (inputs.query, inputs.key, inputs.value, rate))),
        token_scale=inputs.token_scale[:, None],
        norm_scale=inputs.norm_scale.reshape(1, -1),
        norm_bias=inputs.norm_bias.reshape(1, -1),
        fresh=_side_by_side(fresh, pack),
        weights=_side_by_side(initial, pack),
    )
    z, final = _read(operands, sizes)
    restarted_B = jnp.any(inputs.restart, axis=1)
    fast = dict(_one_by_one(final, pack))
    for name in mean:
        started = restarted_B.reshape(-1, *(1,) * (mean[name].ndim - 1))
        fast[name] += jnp.where(started, fresh_mean[name], mean[name])
    return z[:, :T].reshape(B, T, H, K), flatten(fast)


def _sizes(heads: int, width: int, hidden: int, count: int, group: int) -> _Sizes:
    """Of a step that reads up to `group` of `count` mini-batches."""
    pack = _pack_size(heads, width)
    most = _MOST_PACKS[hidden > 0]
    packs = max(n for n in range(1, most + 1) if heads // pack % n == 0)
    return _Sizes(pack, packs, min(group, count, _MOST_GROUP))


def steps(rows: int, heads: int, width: int, hidden: int, count: int, group: int) -> int:
    """Steps of the grid.

    Args:
      rows: sequences.
      heads: number of heads.
      width: of a head.
      hidden: of the inner MLP; 0 for the linear inner model.
      count: mini-batches.
      group: as in `read_mini_batches`.
    """
    pack, packs, group = _sizes(heads, width, hidden, count, group)
    return rows * (heads // (pack * packs)) * -(-count // group)


def _shapes(K: int, F: int) -> Any:
    shapes = {"w1": (K, F or K), "b1": (F or K,)} | ({"w2": (F, K), "b2": (K,)} if F else {})
    return {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in shapes.items()}


def _centre(fast: FastWeights) -> tuple[FastWeights, FastWeights]:
    """The last layer's weights without their mean over the outputs, and that mean.

    Learning leaves it alone (see `linear_scan`), and the LayerNorm takes it off.
    """
    mean = {
        name: jnp.mean(fast[name], axis=-1, keepdims=True)
        for name in (("w2", "b2") if "w2" in fast else ("w1", "b1"))
    }
    return {name: w - mean.get(name, 0) for name, w in fast.items()}, mean


def _side_by_side(fast: FastWeights, pack: int) -> Weights:
    """`[..., H, R, C]` to `[..., H / P, R, P * C]`; a bias has one row."""

    def join(w, rows):
        *lead, H, C = w.shape[: w.ndim - 1 - (rows > 1)] + w.shape[-1:]
        apart = w.reshape(*lead, H // pack, pack, rows, C)
        return jnp.swapaxes(apart, -2, -3).reshape(*lead, H // pack, rows, pack * C)

    return {n: join(w, w.shape[-2] if n.startswith("w") else 1) for n, w in fast.items()}


def _one_by_one(fast: Weights, pack: int) -> FastWeights:
    """Undoes `_side_by_side`."""

    def split(w):
        *lead, packs, R, C = w.shape
        apart = jnp.swapaxes(w.reshape(*lead, packs, R, pack, C // pack), -2, -3)
        return apart.reshape(*lead, packs * pack, R, C // pack)

    split_up = {name: split(w) for name, w in fast.items()}
    return {n: w if n.startswith("w") else w[..., 0, :] for n, w in split_up.items()}


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _read(operands: _Operands, sizes: _Sizes) -> tuple[jax.Array, Weights]:
    """Outputs `[B, T, H * K]` and final weights."""
    z, final, _ = _forward(operands, sizes, save=False)
    return z, final


def _read_fwd(operands: _Operands, sizes: _Sizes):
    z, final, saved = _forward(operands, sizes, save=True)
    return (z, final), operands._replace(weights=saved)


def _read_bwd(sizes: _Sizes, operands: _Operands, grads):
    found = _backward(operands, grads, sizes)
    over_rows = lambda tree: jax.tree.map(lambda x: jnp.sum(x, axis=0), tree)
    return (
        found._replace(
            restart=np.zeros(operands.restart.shape, jax.dtypes.float0),
            token_scale=jnp.sum(found.token_scale, axis=(0, 1)),
            norm_scale=over_rows(found.norm_scale),
            norm_bias=over_rows(found.norm_bias),
            fresh=over_rows(found.fresh),
        ),
    )


_read.defvjp(_read_fwd, _read_bwd)


def _forward(operands: _Operands, sizes: _Sizes, *, save: bool):
    key, initial = operands.tokens.key, operands.weights
    groups = operands.restart.shape[1]
    blocks = _Blocks(operands, sizes, lambda n: n)
    saved_specs, saved = {}, {}
    if save:
        saved_specs = {name: blocks.saved(w) for name, w in initial.items()}
        saved = {n: _float32(w.shape[0], groups, *w.shape[1:]) for n, w in initial.items()}
    return blocks.call(
        functools.partial(_forward_kernel, sizes),
        [operands],
        name="ttt_forward_kernel",
        in_specs=[blocks.operands(blocks.per_row(initial))],
        out_specs=(blocks.tokens(), blocks.per_row(initial), saved_specs),
        out_shape=(_float32(*key.shape), jax.tree.map(_like, initial), saved),
    )


def _backward(operands: _Operands, grads, sizes: _Sizes) -> _Operands:
    grad_z, grad_final = grads
    B, groups = operands.restart.shape[:2]
    blocks = _Blocks(operands, sizes, lambda n: groups - 1 - n)
    saved_specs = {name: blocks.saved(w[:, 0]) for name, w in operands.weights.items()}
    weights = blocks.per_row(grad_final)
    norm = pl.BlockSpec((1, 1, blocks.lanes), lambda i, j, n: (i, 0, j))
    b, steps = operands.token_scale.shape[0], blocks.grid[1]
    out_specs = _Operands(
        restart=None,
        tokens=Tokens(*[blocks.tokens()] * 4),
        token_scale=pl.BlockSpec((1, 1, b, 1), lambda i, j, n: (i, j, 0, 0)),
        norm_scale=norm,
        norm_bias=norm,
        fresh=weights,
        weights=weights,
    )
    per_row = lambda x: _float32(B, *x.shape)
    out_shape = _Operands(
        restart=None,
        tokens=jax.tree.map(_like, operands.tokens),
        token_scale=_float32(B, steps, b, 1),
        norm_scale=per_row(operands.norm_scale),
        norm_bias=per_row(operands.norm_bias),
        fresh=jax.tree.map(per_row, operands.fresh),
        weights=jax.tree.map(_like, grad_final),
    )
    (found,) = blocks.call(
        functools.partial(_backward_kernel, sizes),
        [operands, grad_z, grad_final],
        name="ttt_backward_kernel",
        in_specs=[blocks.operands(saved_specs), blocks.tokens(), weights],
        out_specs=(out_specs,),
        out_shape=(out_shape,),
    )
    return found


def _float32(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def _like(x: jax.Array) -> jax.ShapeDtypeStruct:
    return _float32(*x.shape)


class _Blocks:
    """What a step `(row i, heads j, group n)` of the grid sees of the arrays."""

    def __init__(self, operands: _Operands, sizes: _Sizes, place: Callable[[Any], Any]) -> None:
        """`place` is the order in which the groups come."""
        B, groups = operands.restart.shape[:2]
        _, T, D = operands.tokens.key.shape
        packs = operands.fresh["w1"].shape[0]
        self._sizes, self._place = sizes, place
        self._tokens, self._b = T // groups, operands.token_scale.shape[0]
        self._fresh = operands.fresh
        self.lanes = D * sizes.packs // packs
        self.grid = (B, packs // sizes.packs, groups)

    def tokens(self) -> Any:
        shape = (1, self._tokens, self.lanes)
        return pl.BlockSpec(shape, lambda i, j, n: (i, self._place(n), j))

    def per_row(self, weights: Weights) -> dict[str, pl.BlockSpec]:
        """Of weights of every row."""
        shape = lambda w: (1, self._sizes.packs, *w.shape[2:])
        at = lambda i, j, n: (i, j, 0, 0)
        return {name: pl.BlockSpec(shape(w), at) for name, w in weights.items()}

    def saved(self, weight: jax.Array) -> pl.BlockSpec:
        """Of the weights `[B, H / P, ...]` before every group."""
        shape = (1, 1, self._sizes.packs, *weight.shape[2:])
        return pl.BlockSpec(shape, lambda i, j, n: (i, self._place(n), j, 0, 0))

    def operands(self, weights: Any) -> _Operands:
        norm = pl.BlockSpec((1, self.lanes), lambda i, j, n: (0, j))
        fresh = lambda w: pl.BlockSpec((self._sizes.packs, *w.shape[1:]), lambda i, j, n: (j, 0, 0))
        return _Operands(
            restart=pl.BlockSpec(
                (1, 1, 1, self._sizes.group),
                lambda i, j, n: (i, self._place(n), 0, 0),
                memory_space=pltpu.SMEM,
            ),
            tokens=Tokens(*[self.tokens()] * 4),
            token_scale=pl.BlockSpec((self._b, 1), lambda i, j, n: (0, 0)),
            norm_scale=norm,
            norm_bias=norm,
            fresh={name: fresh(w) for name, w in self._fresh.items()},
            weights=weights,
        )

    def call(self, kernel: Callable[..., None], arguments: list[Any], **settings: Any) -> Any:
        """Runs a kernel on the grid."""

        def run(*arguments, interpret: bool):
            return pl.pallas_call(
                kernel,
                grid=self.grid,
                interpret=interpret,
                compiler_params=pltpu.CompilerParams(
                    dimension_semantics=("parallel", "parallel", "arbitrary"),
                    vmem_limit_bytes=_VMEM_BYTES,
                ),
                **settings,
            )(*arguments)

        # Not known before it is compiled: it may be for another machine.
        return jax.lax.platform_dependent(
            *arguments,
            tpu=functools.partial(run, interpret=False),
            default=functools.partial(run, interpret=True),
        )


def _load(refs: _Operands, sizes: _Sizes):
    """`read_group` for all packs of a step, and its arguments but for the weights."""
    apart = functools.partial(_apart, packs=sizes.packs)
    tokens = Tokens(*(apart(ref[0]) for ref in refs.tokens))
    shared = Shared(
        fresh={name: ref[...] for name, ref in refs.fresh.items()},
        norm_scale=apart(refs.norm_scale[...]),
        norm_bias=apart(refs.norm_bias[...]),
        token_scale=refs.token_scale[...],
    )
    restart = [refs.restart[0, 0, 0, n] != 0 for n in range(sizes.group)]
    each: Any = Shared(0, 0, 0, None)  # type: ignore[arg-type]
    read = functools.partial(read_group, restart, sizes.pack)
    return jax.vmap(read, in_axes=(0, 0, each)), tokens, shared


def _apart(x: jax.Array, packs: int) -> jax.Array:
    """`[R, packs * L]` to `[packs, R, L]`."""
    L = x.shape[1] // packs
    return jnp.stack([x[:, i * L : (i + 1) * L] for i in range(packs)])


def _together(x: jax.Array) -> jax.Array:
    """Undoes `_apart`."""
    return jnp.concatenate(list(x), axis=1)


def _forward_kernel(sizes: _Sizes, refs: _Operands, z_ref, final, saved) -> None:
    # Always the same block, `final` stays on the chip from a sequence's first group to its last.
    @pl.when(pl.program_id(2) == 0)
    def _() -> None:
        for name, ref in final.items():
            ref[...] = refs.weights[name][...]

    read, tokens, shared = _load(refs, sizes)
    fast = {name: ref[0] for name, ref in final.items()}
    for name, ref in saved.items():
        ref[0, 0] = fast[name]
    fast, z = read(fast, tokens, shared)
    z_ref[0] = _together(z)
    for name, ref in final.items():
        ref[0] = fast[name]


def _backward_kernel(sizes: _Sizes, refs: _Operands, grad_z, grad_final, grads: _Operands) -> None:
    """The groups come in reverse; `grads.weights` is that of the weights where it stands."""

    @pl.when(pl.program_id(2) == 0)
    def _() -> None:
        for name, ref in grads.weights.items():
            ref[...] = grad_final[name][...]
        for ref in jax.tree.leaves(grads._replace(tokens=None, weights=None)):
            ref[...] = jnp.zeros_like(ref)

    read, tokens, shared = _load(refs, sizes)
    before = {name: ref[0, 0] for name, ref in refs.weights.items()}
    after = {name: ref[0] for name, ref in grads.weights.items()}
    _, pull_back = jax.vjp(read, before, tokens, shared)
    fast, grad_tokens, grad_shared = pull_back((after, _apart(grad_z[0], sizes.packs)))
    for name, ref in grads.weights.items():
        ref[0] = fast[name]
    for ref, grad in zip(grads.tokens, grad_tokens, strict=True):
        ref[0] = _together(grad)
    for name, ref in grads.fresh.items():
        ref[0] += grad_shared.fresh[name]
    grads.norm_scale[0] += _together(grad_shared.norm_scale)
    grads.norm_bias[0] += _together(grad_shared.norm_bias)
    grads.token_scale[0, 0] += grad_shared.token_scale
