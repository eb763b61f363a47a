"""Reports on the parts that are ours: ternary weights and test-time learning."""

from __future__ import annotations

import functools
from collections.abc import Sequence as Values
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

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
    """Share of codes that differ from the ones given; 0 if none were."""
    threshold_distance: jax.Array
    """Mean distance of latent weights from the nearest rounding threshold, in units of the scale."""
    scale: jax.Array
    """Mean weight scale."""
    latent_histogram: jax.Array
    """Latent weights in units of their scale, counted in `BIN_EDGES`."""


def ternary_report(
    config: ModelConfig, params: Any, before: Codes | None = None
) -> tuple[TernaryReport, Codes]:
    """Reports on all ternary weights together.

    Args:
      config: the model's; at least one of its parts is ternary.
      params: its parameters.
      before: the codes that an earlier call returned.

    Returns:
      The report, and today's codes by parameter path.
    """
    latent = {path: w for path, w in flatten(params).items() if is_ternary(config, path)}
    codes, total = {}, sum(w.size for w in latent.values())
    zeros = flips = distance = scales = jnp.zeros(())
    histogram = jnp.zeros(len(BIN_EDGES) - 1)
    for path, w in latent.items():
        # One scale a layer: kernels are stacked over the scanned groups.
        codes[path], scale = jax.vmap(ternary_codes)(w)
        scaled = w / scale[:, None, None]
        zeros += jnp.sum(codes[path] == 0)
        if before is not None:
            flips += jnp.sum(codes[path] != before[path])
        distance += jnp.sum(jnp.abs(jnp.abs(scaled) - 0.5))
        scales += jnp.mean(scale)
        inside = jnp.clip(scaled, BIN_EDGES[0], BIN_EDGES[-1])
        histogram += jnp.histogram(inside, jnp.array(BIN_EDGES))[0]
    report = TernaryReport(
        zeros / total, flips / total, distance / total, scales / len(latent), histogram
    )
    return report, codes


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
    """

    def __init__(self, config: TrainConfig):
        self._config = config.model
        self._codes: Codes | None = None
        self._has_ternary = config.model.ternary.mixer or config.model.ternary.mlp
        self._ternary = jax.jit(functools.partial(ternary_report, config.model))
        self._ttt = jax.jit(functools.partial(ttt_report, config.model))
        self.histogram: tuple[Values[float], Values[float]] | None = None
        """Counts and bin edges of the latent weights at the last report."""

    def report(self, params: Any, batch: Batch) -> dict[str, float]:
        """Values by tag: `quant/…` of the weights, `ttt/…` of reading the batch's rows."""
        values: dict[str, float] = {}
        if self._has_ternary:
            first = self._codes is None
            ternary, self._codes = self._ternary(params, self._codes)
            self.histogram = (ternary.latent_histogram.tolist(), BIN_EDGES)
            values = {
                "quant/zero_share": float(ternary.zero_share),
                "quant/threshold_distance": float(ternary.threshold_distance),
                "quant/scale": float(ternary.scale),
            }
            if not first:
                values["quant/flip_share"] = float(ternary.flip_share)
        if self._config.uses_ttt:
            report = self._ttt(params, batch["tokens_BT"])
            values |= {f"ttt/{name}": float(value) for name, value in report.items()}
        return values
