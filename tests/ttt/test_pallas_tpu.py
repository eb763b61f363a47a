"""The Pallas kernel in interpret mode, and its way to a TPU's compiler as far as it goes here."""

from __future__ import annotations

import jax
import pytest
from jax.sharding import AbstractMesh, AxisType

from bitttt_jax.distributed.mesh import AXES
from bitttt_jax.errors import ConfigError
from tests.ttt.kernel_checks import check_ttt, read, restarts, ttt_arguments, with_gradients

# Rows, tokens, heads, features, mini-batch, mini-batches between saved weights, hidden width.
SHAPES = [
    (2, 24, 2, 64, 8, 2, 0),  # two heads side by side; three mini-batches in groups of two
    (1, 16, 2, 64, 8, 1, 128),
    # Two packs in a step; heads alone; heads that don't fill the lanes; one step for all.
    *(
        pytest.param(shape, marks=pytest.mark.slow)
        for shape in (
            (2, 48, 8, 32, 16, 2, 0),
            (2, 24, 3, 128, 8, 2, 0),
            (1, 40, 3, 24, 8, 3, 0),
            (2, 32, 4, 64, 16, 0, 0),
            (2, 24, 4, 64, 8, 2, 128),
            (1, 24, 3, 128, 8, 2, 256),
            (2, 24, 1, 16, 8, 0, 64),
        )
    ),
]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_kernel_computes_what_xla_does(shape):
    check_ttt("pallas_tpu", *shape)


@pytest.mark.parametrize("axes", [(1, 1, 1), (2, 2, 3)], ids=str)
@pytest.mark.parametrize("hidden", [0, 256])
def test_it_lowers_for_tpus(hidden, axes):
    """On a mesh, where the partitioner would refuse it, as every device's part."""
    B, T, H, K, b, group = 4, 64, 12, 64, 16, 2
    mesh = AbstractMesh(axes, AXES, (AxisType.Auto,) * 3)

    def run(*arguments):
        function = lambda *a: read(*a, restarts(B, T // b), "pallas_tpu", group)
        return with_gradients(function, *arguments)

    with jax.sharding.use_abstract_mesh(mesh):
        traced = jax.jit(run).trace(*ttt_arguments(B, T, H, K, b, hidden))
        text = traced.lower(lowering_platforms=("tpu",)).as_text()
    assert text.count("tpu_custom_call") == 2


def test_what_it_does_not_take():
    arguments = ttt_arguments(1, 8, 4, 48, 4)
    with pytest.raises(ConfigError, match=r"128 lanes.* multiples of 8"):
        read(*arguments, None, "pallas_tpu", 0)
