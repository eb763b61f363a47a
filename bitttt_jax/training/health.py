"""Reports on the parts that are ours: ternary weights and test-time learning."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from bitttt_jax.config import ModelConfig, TrainConfig
from bitttt_jax.layers.inputs import Sequence
from bitttt_jax.models.parameters import flatten, is_ternary
from bitttt_jax.models.transformer import Transformer
from bitttt_jax.ops.quantize import ternary_codes
from bitttt_jax.training.step import Batch

# Bins of the histogram of latent weights, in units of their scale; codes change at +-0.5.
BIN_EDGES = tuple(i / 10 for i in range(-40, 41))

Codes = dict[str, jax.Array]


class TernaryReport(NamedTuple):
    """State of the ternary weights of a model."""

    zero_share: jax.Array
    """Share of codes that are 0."""
    flip_share: jax.Array
    """Share of codes that differ from earlier ones."""
    threshold_distance: jax.Array
    """Mean distance of latent weights from a rounding threshold, in units of the scale."""
    scale: jax.Array
    """Mean weight scale."""
    histogram: jax.Array
    """Latent weights in units of their scale, counted in `BIN_EDGES`."""


def codes_by_path(config: ModelConfig, params: Any) -> Codes:
    """The ternary codes of a model, int8 by parameter path."""
    return {path: jax.vmap(ternary_codes)(w)[0] for path, w in _latent(config, params).items()}


def ternary_report(config: ModelConfig, params: Any, before: Codes) -> TernaryReport:
    """Reports on all ternary weights together.

    Args:
      config: the model's; at least one of its parts is ternary.
      params: its parameters.
      before: the codes to compare with, as from `codes_by_path`.
    """
    latent = _latent(config, params)
    # One layer after the other: kernels are stacked over the depth, and each has its own scale.
    layers = [
        jax.lax.map(lambda pair: _layer_report(*pair), (w, before[path]))
        for path, w in latent.items()
    ]
    sums = jax.tree.map(lambda *parts: sum(jnp.sum(part, axis=0) for part in parts), *layers)
    weights = sum(w.size for w in latent.values())
    kernels = sum(w.shape[0] for w in latent.values())
    return TernaryReport(
        sums.zero_share / weights,
        sums.flip_share / weights,
        sums.threshold_distance / weights,
        sums.scale / kernels,
        sums.histogram,
    )


def _latent(config: ModelConfig, params: Any) -> dict[str, jax.Array]:
    return {path: w for path, w in flatten(params).items() if is_ternary(config, path)}


def _layer_report(w: jax.Array, before: jax.Array) -> TernaryReport:
    """Sums over one kernel."""
    codes, scale = ternary_codes(w)
    scaled = w / scale
    return TernaryReport(
        jnp.sum(codes == 0).astype(jnp.float32),
        jnp.sum(codes != before).astype(jnp.float32),
        jnp.sum(jnp.abs(jnp.abs(scaled) - 0.5)),
        scale,
        jnp.histogram(jnp.clip(scaled, BIN_EDGES[0], BIN_EDGES[-1]), jnp.array(BIN_EDGES))[0],
    )


def ttt_report(config: ModelConfig, params: Any, token_BT: jax.Array) -> dict[str, jax.Array]:
    """The inner learning's averages over all TTT layers while they read some rows.

    Args:
      config: the model's; at least one mixer is a TTT mixer.
      params: its parameters.
      token_BT: rows of whole mini-batches.
    """
    sequence = Sequence(jnp.broadcast_to(jnp.arange(token_BT.shape[1]), token_BT.shape))
    _, variables = Transformer(config).apply(
        {"params": params}, token_BT, sequence, mutable=["health"]
    )
    reports = [
        block["mixer"]["ttt"]
        for block in variables["health"]["blocks"].values()
        if "mixer" in block
    ]
    return jax.tree.map(lambda *values: jnp.mean(jnp.stack(values)), *reports)


class HealthMonitor:
    """Reports of a run, one after the other; remembers the codes of the last one.

    Args:
      config: the run's.
      mesh: where its parameters are.
    """

    def __init__(self, config: TrainConfig, mesh: Mesh):
        model = config.model
        everywhere = NamedSharding(mesh, P())
        self._has_ternary = model.ternary.mixer or model.ternary.mlp
        self._uses_ttt = model.uses_ttt
        self._codes: Codes | None = None
        self._codes_by_path = jax.jit(functools.partial(codes_by_path, model))
        self._ternary = jax.jit(functools.partial(ternary_report, model), out_shardings=everywhere)
        # As many rows as a part of a training step has, so that there is room for them.
        parts = config.optim.accumulation
        self._ttt = jax.jit(
            lambda params, token_BT: ttt_report(model, params, token_BT[::parts]),
            out_shardings=everywhere,
        )
        self.histogram: tuple[list[float], tuple[float, ...]] | None = None
        """Counts and bin edges of the latent weights at the last report."""

    def report(self, params: Any, batch: Batch) -> dict[str, float]:
        """Values by tag: `quant/…` of the weights, `ttt/…` of reading the batch's rows."""
        values: dict[str, float] = {}
        if self._has_ternary:
            before, self._codes = self._codes, self._codes_by_path(params)
            report = self._ternary(params, before or self._codes)
            self.histogram = (report.histogram.tolist(), BIN_EDGES)
            values = {
                "quant/zero_share": float(report.zero_share),
                "quant/threshold_distance": float(report.threshold_distance),
                "quant/scale": float(report.scale),
            }
            if before is not None:
                values["quant/flip_share"] = float(report.flip_share)
        if self._uses_ttt:
            ttt = self._ttt(params, batch["tokens_BT"])
            values |= {f"ttt/{name}": float(value) for name, value in ttt.items()}
        return values
