"""Products on a mesh of devices are those of one device."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from bitttt_jax.config import MeshConfig
from bitttt_jax.distributed.mesh import make_mesh
from bitttt_jax.ternary import divided
from bitttt_jax.ternary.divided import Kernel
from bitttt_jax.ternary.kernels import cpu, pallas_gpu, pallas_tpu, xla
from bitttt_jax.ternary.latent import fake_quant_matmul, int8_matmul
from bitttt_jax.ternary.matmul import matmul
from tests.kernels import needs_kernels
from tests.ternary.products import random_product

AXES = [(1, 2, 4), (2, 2, 2), (1, 1, 8)]
SHARDINGS = pytest.mark.parametrize("sharding", ["columns", "rows"])
MESHES = pytest.mark.parametrize("axes", AXES, ids=str)


def interpreted(module) -> Kernel:
    return Kernel(
        functools.partial(module.matmul, interpret=True),
        functools.partial(module.sums, interpret=True),
    )


KERNELS = [
    pytest.param(Kernel(xla.matmul, xla.sums), "i2_s", id="xla"),
    pytest.param(Kernel(xla.matmul, xla.sums), "base3", id="xla-base3"),
    pytest.param(Kernel(cpu.matmul, cpu.sums), "i2_s", id="cpu", marks=needs_kernels),
    pytest.param(interpreted(pallas_tpu), "rows4", id="pallas_tpu"),
    pytest.param(interpreted(pallas_gpu), "i2_s", id="pallas_gpu"),
]


@SHARDINGS
@pytest.mark.parametrize(("kernel", "layout"), KERNELS)
def test_every_kernel_gives_the_product_of_one_device(kernel, layout, sharding):
    K = 1280 if layout == "base3" else 1024
    x, weights = random_product(8, K, (512, 1024), layout=layout)
    expected = jax.jit(xla.matmul)(x, weights)
    with jax.set_mesh(make_mesh(MeshConfig(1, 2, 4))):
        assert divided.parts(weights, sharding) is not None
        found = jax.jit(lambda x, w: divided.matmul(x, w, kernel, sharding))(x, weights)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=5e-7, atol=0)


@pytest.mark.parametrize("implementation", ["xla", pytest.param("cpu", marks=needs_kernels)])
@SHARDINGS
@MESHES
def test_values_and_gradients_are_those_of_one_device(axes, sharding, implementation):
    x, weights = random_product(8, 1024, (48, 16))
    probes = [np.random.default_rng(n).normal(size=(8, n)).astype(np.float32) for n in (48, 16)]

    def run(x, weights):
        def loss(x):
            ys = matmul(x, weights, implementation=implementation, sharding=sharding)
            return sum(jnp.sum(y * probe) for y, probe in zip(ys, probes, strict=True)), ys

        return jax.grad(loss, has_aux=True)(x)

    gradient, expected = jax.jit(run)(x, weights)
    with jax.set_mesh(make_mesh(MeshConfig(*axes))):
        text = jax.jit(run).lower(x, weights).as_text()
        found_gradient, found = jax.jit(run)(x, weights)
    assert "bitttt_packed_matmul" in text or implementation == "xla"
    np.testing.assert_allclose(found_gradient, gradient, rtol=1e-6, atol=1e-5)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=5e-7, atol=0)


def test_the_scale_is_that_of_the_whole_row():
    """One value is far larger than all others, which only its own device sees."""
    x, weights = random_product(8, 1024, (16,))
    x = x.at[:, 5].set(1e4)
    with jax.set_mesh(make_mesh(MeshConfig(1, 1, 8))):
        (found,) = jax.jit(lambda x, w: matmul(x, w, sharding="rows"))(x, weights)
    (expected,) = jax.jit(xla.matmul)(x, weights)
    np.testing.assert_allclose(found, expected, rtol=5e-7, atol=0)


@SHARDINGS
@pytest.mark.parametrize("rows", [1, 3])
def test_what_devices_cannot_share_is_computed_by_each(rows, sharding):
    x, weights = random_product(rows, 130, (33, 7))
    with jax.set_mesh(make_mesh(MeshConfig(1, 2, 4))):
        assert divided.parts(weights, sharding) is None
        found = jax.jit(lambda x, w: matmul(x, w, sharding=sharding))(x, weights)
    for one, other in zip(found, jax.jit(xla.matmul)(x, weights), strict=True):
        np.testing.assert_allclose(one, other, rtol=5e-7, atol=0)


def test_each_device_reads_its_own_part_of_the_weights():
    """Nothing but activations and sums is sent, however the codes are laid."""
    x, weights = random_product(8, 1024, (512,))
    mesh = make_mesh(MeshConfig(1, 1, 8))
    for sharding, of_codes in (("columns", P("tensor")), ("rows", P(None, "tensor"))):
        codes = jax.device_put(weights[0].codes, NamedSharding(mesh, of_codes))
        placed = jax.tree.unflatten(jax.tree.structure(weights), (codes, weights[0].scale))
        with jax.set_mesh(mesh):
            product = jax.jit(lambda x, w, s=sharding: matmul(x, w, sharding=s))
            text = product.lower(x, placed).compile().as_text()
        assert "u8" not in "".join(line for line in text.splitlines() if "all-" in line)
        assert ("all-reduce" in text) == (sharding == "rows")


@pytest.mark.parametrize("product", [int8_matmul, fake_quant_matmul])
@SHARDINGS
@MESHES
def test_training_products_keep_their_scales_on_a_mesh(axes, sharding, product):
    """The partitioner sees whole tensors: scales of weights and tokens are global."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(8, 64)).astype(np.float32)
    x[:, 5] = 100  # the largest value of each row is on one device, as is that of the weights
    w = rng.normal(size=(64, 32)).astype(np.float32)
    w[:3] *= 50

    probe = rng.normal(size=(8, 32)).astype(np.float32)

    def run(x, w):
        loss = lambda x, w: (jnp.sum(probe * (y := product(x, (w,))[0])), y)
        return jax.grad(loss, (0, 1), has_aux=True)(x, w)

    expected = jax.jit(run)(x, w)
    mesh = make_mesh(MeshConfig(*axes))
    batch = ("data", "fsdp")
    specs = {
        "columns": (P(batch, None), P("fsdp", "tensor")),
        "rows": (P(batch, "tensor"), P("tensor", "fsdp")),
    }
    with jax.set_mesh(mesh):
        placed = [
            jax.device_put(value, NamedSharding(mesh, spec))
            for value, spec in zip((x, w), specs[sharding], strict=True)
        ]
        found = jax.jit(run)(*placed)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5 * np.abs(other).max())
