from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bitttt_jax.config import MeshConfig, TernaryConfig
from bitttt_jax.distributed import mesh as meshes
from bitttt_jax.models import transformer
from bitttt_jax.models.parameters import flatten, is_ternary
from bitttt_jax.training.health import BIN_EDGES, HealthMonitor, codes_by_path, ternary_report
from tests.training.samples import make_batch, make_config

CONFIG = make_config("ttt_linear", num_layers=2, ternary=TernaryConfig(mlp=False))


@pytest.fixture(scope="module")
def params():
    init = functools.partial(transformer.init_params, CONFIG.model)
    return jax.jit(lambda: init(jax.random.key(0)))()


def nudged(params, seed: int = 1):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda w: w + jnp.asarray(rng.normal(0, 0.01, w.shape), w.dtype), params)


def test_the_report_counts_all_ternary_weights_and_no_others(params):
    before = codes_by_path(CONFIG.model, params)
    after = nudged(params)
    found = jax.jit(functools.partial(ternary_report, CONFIG.model))(after, before)
    zeros = flips = total = 0
    distances, scales, scaled = [], [], []
    for path, w_GMN in flatten(after).items():
        if not is_ternary(CONFIG.model, path):
            assert path not in before
            continue
        assert "/mlp/" not in path
        for w, old in zip(np.asarray(w_GMN, np.float64), before[path], strict=True):
            scale = np.abs(w).mean()
            codes = np.clip(np.round(w / scale), -1, 1)
            zeros += (codes == 0).sum()
            flips += (codes != old).sum()
            total += w.size
            distances.append(np.abs(np.abs(w / scale) - 0.5).ravel())
            scales.append(scale)
            scaled.append((w / scale).ravel())
    assert total == 2 * 4 * 32 * 32
    assert found.zero_share == pytest.approx(zeros / total, abs=2 / total)
    assert found.flip_share == pytest.approx(flips / total, abs=2 / total)
    assert 0.05 < found.flip_share < 0.5
    assert found.threshold_distance == pytest.approx(np.concatenate(distances).mean(), rel=1e-5)
    assert found.scale == pytest.approx(np.mean(scales), rel=1e-5)
    counts, _ = np.histogram(np.clip(np.concatenate(scaled), -4, 4), BIN_EDGES)
    assert found.histogram.sum() == total
    assert np.abs(np.cumsum(found.histogram) - np.cumsum(counts)).max() <= 2


def test_reports_of_a_run(params):
    mesh = meshes.make_mesh(MeshConfig())
    monitor = HealthMonitor(CONFIG, mesh)
    batch = meshes.to_global(make_batch(0), mesh, 8)
    with jax.set_mesh(mesh):
        first = monitor.report(params, batch)
        same, moved = monitor.report(params, batch), monitor.report(nudged(params), batch)
    assert "quant/flip_share" not in first
    assert same["quant/flip_share"] == 0 and moved["quant/flip_share"] > 0.05
    assert {tag for tag in first if tag.startswith("ttt/")} == {
        "ttt/fast_drift", "ttt/inner_rate",
        "ttt/inner_loss_initial", "ttt/inner_loss_current", "ttt/inner_loss_updated",
    }  # fmt: skip
    assert len({value for tag, value in first.items() if "inner_loss" in tag}) == 3
    assert all(np.isfinite(value) for value in moved.values())
    counts, edges = monitor.histogram  # type: ignore[misc]
    assert len(edges) == len(counts) + 1 and sum(counts) == 2 * 4 * 32 * 32


def test_a_float_attention_model_has_nothing_to_report():
    config = make_config(ternary=TernaryConfig(mixer=False, mlp=False))
    monitor = HealthMonitor(config, meshes.make_mesh(MeshConfig()))
    assert monitor.report({}, {}) == {} and monitor.histogram is None
