"""Which kernel reads complete mini-batches, and how the devices of a mesh share its work."""

from __future__ import annotations

from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from bitttt_jax import native
from bitttt_jax.config import BATCH_AXES, TENSOR_AXIS
from bitttt_jax.errors import ConfigError
from bitttt_jax.ops.partition import Axes, devices_along, over_mesh, shared
from bitttt_jax.ttt.inner import FastWeights
from bitttt_jax.ttt.kernels import cpu, pallas_tpu
from bitttt_jax.ttt.kernels.inputs import Inputs, flatten, unflatten
from bitttt_jax.ttt.state import Learner, Views

Kernel = Literal["cpu", "pallas_tpu"]
Implementation = Literal["xla"] | Kernel
"""What computes the dual form: XLA, native CPU code, or a Pallas kernel for TPUs."""
Choice = Implementation | Literal["auto"]
"""`auto` is the fastest that fits."""

_KERNELS: dict[Kernel, Any] = {
    "cpu": cpu.read_mini_batches,
    "pallas_tpu": pallas_tpu.read_mini_batches,
}
# Mini-batches between two saved weights where all may be saved: a step of the TPU kernel's grid
# should be long, and to it there is nothing in between to save.
_GROUPS = {"cpu": 1, "pallas_tpu": 4}


def choose(asked: Choice, learner: Learner, views: Views) -> Implementation:
    """The implementation of the dual form for these shapes, types and devices.

    Raises:
      ConfigError: the one asked for doesn't run here.
    """
    *_, H, K = views.query.shape
    hidden, mini_batch = _hidden(learner), learner.token_scale_b.shape[0]
    is_float32 = views.query.dtype == jnp.float32
    if asked == "pallas_tpu" or (asked == "auto" and native.platform() == "tpu"):
        own = H // (devices_along(TENSOR_AXIS) if shared(TENSOR_AXIS, H) else 1)
        if is_float32 and pallas_tpu.takes(own, K, hidden, mini_batch):
            return "pallas_tpu"
        if asked == "pallas_tpu":
            raise ConfigError(
                "the Pallas kernel of the inner learning can't be used here",
                f"it needs {pallas_tpu.NEEDS}, and float32",
                "model.ttt.implementation=auto",
            )
    fits = is_float32 and K % 16 == 0 and hidden % 16 == 0
    needs = "float32 fast weights whose widths are multiples of 16"
    return native.choose(asked, fits, needs, on_mesh=True)


def read_mini_batches(
    kernel: Kernel,
    learner: Learner,
    views: Views,
    fast: FastWeights,
    restart_BN: jax.Array | None,
    remat_group: int,
) -> tuple[jax.Array, FastWeights]:
    """Complete mini-batches, as `ttt.dual.dual` reads them.

    Args:
      kernel: what computes them.
      learner: outer parameters.
      views: tokens.
      fast: weights before them.
      restart_BN: True where a mini-batch starts a new document; None for nowhere.
      remat_group: mini-batches between two saved fast weights; 0 leaves it to the kernel.

    Returns:
      Outputs `[B, T, H, K]` and the weights after the last mini-batch.
    """
    B, T, H, _ = views.query.shape
    if restart_BN is None:
        restart_BN = jnp.zeros((B, T // learner.token_scale_b.shape[0]), bool)
    inputs = Inputs(
        *views,
        learner.token_scale_b,
        *learner.norm,
        initial=flatten(fast),
        fresh=flatten(learner.fast),
        restart=restart_BN,
    )
    hidden, group = _hidden(learner), remat_group or _GROUPS[kernel]
    read = lambda inputs: _KERNELS[kernel](inputs, hidden, group)
    specs = _specs(shared(BATCH_AXES, B), shared(TENSOR_AXIS, H))
    z, final = over_mesh(read, (specs,), (specs.query, specs.initial))(inputs)
    return z, unflatten(final, learner.fast)


def _specs(rows: Axes | None, heads: Axes | None) -> Inputs:
    """Where the parts of `Inputs` lie."""
    tokens: Any = P(rows, None, heads)
    per_head: Any = P(heads)
    per_row: Any = P(rows)
    everywhere: Any = P()
    per_row_and_head: Any = P(rows, heads)
    return Inputs(
        query=tokens,
        key=tokens,
        value=tokens,
        rate=tokens,
        token_scale=everywhere,
        norm_scale=per_head,
        norm_bias=per_head,
        initial=per_row_and_head,
        fresh=per_head,
        restart=per_row,
    )


def _hidden(learner: Learner) -> int:
    """Hidden width of the inner MLP; 0 for the linear inner model."""
    return learner.fast["w1"].shape[-1] if "w2" in learner.fast else 0
