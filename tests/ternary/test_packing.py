from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bitttt_jax.ternary import packing
from bitttt_jax.ternary.packing import LAYOUTS

SHAPES = [(128, 3), (300, 5), (1, 1), (640, 16), (257, 2), (4, 7), (5, 1)]


def trits(*shape: int) -> np.ndarray:
    return np.random.default_rng(shape).integers(-1, 2, shape).astype(np.int8)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", SHAPES)
def test_unpacking_undoes_packing(layout, shape):
    weight = trits(*shape)
    packed = packing.pack(weight, jnp.float32(0.5), layout)
    assert packed.codes.dtype == np.uint8
    assert packed.codes.shape == packing.codes_shape(shape, layout)
    np.testing.assert_array_equal(packing.unpack(packed), weight)


@pytest.mark.parametrize("source", LAYOUTS)
@pytest.mark.parametrize("target", LAYOUTS)
def test_layouts_convert_into_each_other_exactly(source, target):
    weight, scale = trits(2, 300, 5), np.array([0.5, 2.0], np.float32)
    converted = packing.convert_layout(packing.pack(weight, scale, source), target)
    direct = packing.pack(weight, scale, target)
    assert converted.layout == target and converted.shape == (300, 5)
    np.testing.assert_array_equal(converted.codes, direct.codes)
    np.testing.assert_array_equal(converted.scale, scale)


def test_blocks_lie_as_in_gguf_files():
    weight = trits(256, 3)
    codes = np.asarray(packing.pack(weight, jnp.float32(1), "i2_s").codes)
    for n in range(3):
        for block in range(2):
            q = (weight[128 * block : 128 * (block + 1), n] + 1).astype(np.uint8)
            for j in range(32):
                byte = (q[j] << 6) | (q[32 + j] << 4) | (q[64 + j] << 2) | q[96 + j]
                assert codes[n, 32 * block + j] == byte


def test_rows_are_twos_complement_from_the_lowest_bits_up():
    weight = np.array([[1], [-1], [0], [-1]], np.int8)
    codes = packing.pack(weight, jnp.float32(1), "rows4").codes
    assert codes.tolist() == [[0b11_00_11_01]]


def test_base3_digits_and_size():
    weight = np.array([[1], [-1], [0], [1], [0], [1]], np.int8)
    codes = packing.pack(weight, jnp.float32(1), "base3").codes
    assert codes.tolist() == [[2 * 81 + 0 * 27 + 1 * 9 + 2 * 3 + 1, 2 * 81 + 27 + 9 + 3 + 1]]
    assert packing.codes_shape((2560, 10), "base3") == (10, 512)  # 1.6 bits a weight


def test_a_packed_weight_is_a_pytree_that_jit_and_stacks_take():
    weight = trits(2, 256, 4)
    packed = packing.pack(weight, np.array([1.0, 2.0], np.float32))
    unpacked = jax.jit(packing.unpack)(packed)
    np.testing.assert_array_equal(unpacked, weight)
    second = jax.tree.map(lambda x: x[1], packed)
    np.testing.assert_array_equal(packing.unpack(second), weight[1])
    assert packed.nbytes == 2 * 4 * 64 + 8


@pytest.mark.parametrize("layout", LAYOUTS)
def test_latent_weights_are_quantised_as_in_training(layout):
    w = np.random.default_rng(0).normal(size=(130, 6)).astype(np.float32)
    packed = packing.quantize_and_pack(w, layout)
    mean = np.abs(w).mean()
    assert float(packed.scale) == pytest.approx(mean, rel=1e-6)
    np.testing.assert_array_equal(packing.unpack(packed), np.clip(np.round(w / mean), -1, 1))
