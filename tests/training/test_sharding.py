"""Training on a mesh of devices computes what training on one device does."""

from __future__ import annotations

import dataclasses
import functools
import re
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from bitttt_jax.config import MeshConfig, ModelConfig, TrainConfig
from bitttt_jax.distributed import mesh as meshes
from bitttt_jax.errors import ConfigError
from bitttt_jax.runs.console import Console
from bitttt_jax.runs.directory import RunDirectory
from bitttt_jax.training.setup import Compiled, compile_steps, new_state
from tests.kernels import needs_kernels
from tests.training.samples import BATCH, LENGTH, make_batch, make_config, masked

STEPS = 7
PARTLY_COUNTED = (1, 4)
ONE = (1, 1, 1)


@functools.cache
def compiled(config: TrainConfig, axes: tuple[int, int, int]) -> Compiled:
    devices = jax.devices()[: int(np.prod(axes))]
    mesh = meshes.make_mesh(MeshConfig(*axes), devices)
    return compile_steps(config, mesh, RunDirectory(Path("unused")), Console(mode="silent"))


@functools.cache
def train(config: TrainConfig, axes: tuple[int, int, int]) -> tuple[np.ndarray, np.ndarray, Any]:
    """Losses, gradient norms, and sums of a validation on the trained parameters."""
    steps = compiled(config, axes)
    state = new_state(config, steps)
    results = []
    for seed in range(STEPS):
        # In some, rows and devices differ in how many of their predictions count.
        batch = make_batch(seed)
        if seed in PARTLY_COUNTED:
            batch = masked(batch, seed)
        state, metrics = steps.train_step(state, steps.train_feed.to_devices(batch))
        results.append((float(metrics.loss), float(metrics.grad_norm)))
    sums = steps.eval_step(state.params, steps.eval_feed.to_devices(masked(make_batch(99), 99)))
    losses, norms = np.array(results).T
    return losses, norms, jax.device_get(sums)


def assert_same_training(
    config: TrainConfig, axes: tuple[int, int, int], reference: TrainConfig | None = None
) -> None:
    losses, norms, sums = train(config, axes)
    expected_losses, expected_norms, expected_sums = train(reference or config, ONE)
    np.testing.assert_allclose(losses, expected_losses, rtol=1e-5)
    np.testing.assert_allclose(norms, expected_norms, rtol=1e-3)
    np.testing.assert_array_equal(sums.tokens_BP, expected_sums.tokens_BP)
    np.testing.assert_allclose(sums.loss_BP, expected_sums.loss_BP, rtol=1e-3, atol=1e-6)
    assert expected_losses[-1] < expected_losses[0] - 0.2


def wide(*mixers: str, **optim: Any) -> TrainConfig:
    """Eight heads, so that every axis can have eight devices."""
    return make_config(*mixers, num_heads=8, dim=64, optim=optim)


@pytest.mark.parametrize(
    ("mixer", "axes"), [("attention", (1, 8, 1)), ("ttt_linear", (1, 4, 2))], ids=str
)
def test_sharded_training_computes_what_one_device_does(mixer: str, axes: tuple[int, int, int]):
    assert_same_training(wide(mixer), axes)


@pytest.mark.slow
@pytest.mark.parametrize("axes", [(8, 1, 1), (1, 8, 1), (1, 1, 8), (1, 4, 2), (2, 2, 2)], ids=str)
@pytest.mark.parametrize(
    "mixers",
    [("attention",), ("ttt_linear",), ("ttt_mlp",), ("ttt_linear", "attention", "ttt_mlp")],
    ids="+".join,
)
def test_every_axis_computes_what_one_device_does(
    mixers: tuple[str, ...], axes: tuple[int, int, int]
):
    assert_same_training(wide(*mixers), axes)


def with_kernels(implementation: str, *mixers: str) -> TrainConfig:
    """Wide enough for them, on two devices along each axis too."""
    config = make_config(*mixers, num_heads=4, dim=64)
    ttt = dataclasses.replace(config.model.ttt, implementation=implementation)
    return dataclasses.replace(config, model=dataclasses.replace(config.model, ttt=ttt))


@pytest.mark.parametrize(
    ("implementation", "mixer"),
    [
        pytest.param("cpu", "ttt_linear", marks=needs_kernels),
        pytest.param("cpu", "ttt_mlp", marks=[needs_kernels, pytest.mark.slow]),
        pytest.param("pallas_tpu", "ttt_linear", marks=pytest.mark.slow),
        pytest.param("pallas_tpu", "ttt_mlp", marks=pytest.mark.slow),
    ],
)
def test_kernels_on_a_mesh_compute_what_xla_does_on_one_device(implementation: str, mixer: str):
    config, reference = (with_kernels(name, mixer) for name in (implementation, "xla"))
    assert_same_training(config, (2, 2, 2), reference)


@pytest.mark.slow
@pytest.mark.parametrize("optim", [{"name": "muon"}, {"accumulation": 2, "loss_chunk": 32}])
def test_muon_and_accumulation_on_a_mesh(optim: dict[str, Any]):
    assert_same_training(wide("attention", **optim), (2, 2, 2))


def collectives(config: TrainConfig, axes: tuple[int, int, int]) -> list[tuple[str, list[int]]]:
    """Kind and shape of the results of all communication in a train step."""
    text = compiled(config, axes).train_step.as_text()  # type: ignore[attr-defined]
    kinds = "all-gather|all-reduce|all-to-all|reduce-scatter|collective-permute"
    found = []
    for shapes, kind in re.findall(rf"= (.*?) ({kinds})(?:-start)?\(", text):
        for shape in re.findall(r"\b[a-z]+\d+\[([\d,]*)\]", shapes):
            found.append((kind, [int(size) for size in shape.split(",") if size]))
    return found


def test_copies_of_the_model_only_add_up_gradients():
    found = collectives(wide("attention"), (8, 1, 1))
    assert {kind for kind, _ in found} == {"all-reduce"}


def test_fsdp_gathers_parameters_and_leaves_activations_where_they_are():
    config = wide("attention")
    found = collectives(config, (1, 8, 1))
    model: ModelConfig = config.model
    gathered = {tuple(shape) for kind, shape in found if kind == "all-gather"}
    assert {(model.dim, model.mlp_dim), (model.mlp_dim, model.dim)} <= gathered
    for kind, shape in found:
        rows = shape[:1] == [BATCH * LENGTH] or shape[:2] == [BATCH, LENGTH]
        assert not rows or np.prod(shape) == BATCH * LENGTH, f"{kind} of {shape}"  # but for tokens


def test_a_mesh_that_does_not_divide_the_model_is_refused():
    config = dataclasses.replace(wide("attention"), mesh=MeshConfig(fsdp=1, tensor=8))
    odd = dataclasses.replace(config, model=dataclasses.replace(config.model, mlp_dim=68))
    with pytest.raises(ConfigError, match=r"mesh.tensor=8 doesn't divide .*mlp/down"):
        compiled(odd, (1, 1, 8))
