from __future__ import annotations

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from bitttt_jax.config import MeshConfig
from bitttt_jax.distributed.mesh import (
    batch_sharding,
    check_batch_size,
    make_mesh,
    process_rows,
    to_global,
)
from bitttt_jax.errors import ConfigError


@pytest.mark.parametrize(
    ("config", "shape"),
    [
        (MeshConfig(), (8, 1, 1)),
        (MeshConfig(fsdp=4), (2, 4, 1)),
        (MeshConfig(fsdp=2, tensor=4), (1, 2, 4)),
        (MeshConfig(data=2, fsdp=2, tensor=2), (2, 2, 2)),
    ],
)
def test_axes_and_sizes(config: MeshConfig, shape: tuple[int, ...]):
    mesh = make_mesh(config)
    assert mesh.axis_names == ("data", "fsdp", "tensor")
    assert mesh.devices.shape == shape
    assert set(mesh.devices.flat) == set(jax.devices())
    assert set(mesh.axis_types) == {jax.sharding.AxisType.Auto}


def test_some_devices():
    devices = jax.devices()[2:5]
    assert list(make_mesh(MeshConfig(), devices).devices.flat) == devices


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (MeshConfig(data=3), ["mesh.data=3", "= 3", "8 devices", "mesh.data=-1"]),
        (MeshConfig(data=2, fsdp=8), ["mesh.fsdp=8", "= 16", "8 devices"]),
        (MeshConfig(fsdp=3), ["mesh.fsdp=3", "mesh.tensor=1", "8"]),
        (MeshConfig(fsdp=4, tensor=4), ["= 16", "8"]),
    ],
)
def test_sizes_that_do_not_fit_the_devices(config: MeshConfig, words: list[str]):
    with pytest.raises(ConfigError) as caught:
        make_mesh(config)
    assert all(word in str(caught.value) for word in words)


def test_batch_must_share_evenly():
    mesh = make_mesh(MeshConfig(fsdp=2, tensor=2))  # 4 shards of rows
    check_batch_size(8, 1, mesh)
    check_batch_size(8, 2, mesh)
    with pytest.raises(ConfigError, match=r"data\.batch_size=6 must be a multiple of 4"):
        check_batch_size(6, 1, mesh)
    with pytest.raises(ConfigError, match=r"optim\.accumulation=4.*multiple of 4") as caught:
        check_batch_size(8, 4, mesh)
    assert "--config.data.batch_size=16" in str(caught.value)


def test_batch_goes_to_the_devices_row_by_row():
    mesh = make_mesh(MeshConfig(fsdp=2, tensor=2))
    rows = process_rows(mesh, 8)
    assert rows.tolist() == list(range(8))
    local = {"tokens": rows[:, None] * 10 + np.arange(3), "segments": np.zeros((8, 3), np.int32)}
    batch = to_global(local, mesh, 8)
    assert batch["tokens"].sharding == batch_sharding(mesh)
    assert batch["tokens"].sharding.spec == P(("data", "fsdp"), None)
    np.testing.assert_array_equal(batch["tokens"], local["tokens"])
    for shard in batch["tokens"].addressable_shards:
        data, fsdp, _ = np.argwhere(mesh.devices == shard.device)[0]
        first = 2 * (2 * data + fsdp)
        np.testing.assert_array_equal(shard.data, local["tokens"][first : first + 2])
