"""Functions that run on each device's part."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from bitttt_jax.ops.partition import over_mesh, shared

SPECS = ((P(("data", "fsdp"), None), P(None, "tensor")), P(("data", "fsdp"), "tensor"))


def mesh(data: int, fsdp: int, tensor: int) -> jax.sharding.Mesh:
    axes = ("data", "fsdp", "tensor")
    devices = jax.devices()[: data * fsdp * tensor]
    return jax.make_mesh((data, fsdp, tensor), axes, (AxisType.Auto,) * 3, devices=devices)


def test_each_device_sees_its_part_and_gradients_are_whole():
    rng = np.random.default_rng(0)
    x, w = (jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in ((8, 6), (6, 4)))
    seen = []

    def product(x, w):
        seen.append((x.shape, w.shape))
        return x @ w

    def loss(x, w):
        return jnp.sum(jnp.sin(over_mesh(product, *SPECS)(x, w)))

    expected = jax.grad(loss, (0, 1))(x, w)
    assert set(seen) == {((8, 6), (6, 4))}
    seen.clear()
    with jax.set_mesh(mesh(2, 2, 2)):
        found = jax.jit(jax.grad(loss, (0, 1)))(x, w)
    assert set(seen) == {((2, 6), (6, 2))}
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


def test_what_devices_can_share():
    rows = ("data", "fsdp")
    assert shared("tensor", 3) == "tensor" and shared(rows, 1) == rows
    with jax.set_mesh(mesh(2, 2, 2)):
        assert shared("tensor", 4) == "tensor" and shared("tensor", 3) is None
        assert shared(rows, 4) == rows and shared(rows, 6) is None
