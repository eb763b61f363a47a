from __future__ import annotations

import numpy as np
import pytest

from bitttt_jax.data.memory import Arena
from bitttt_jax.interop import ternary_rows
from bitttt_jax.ternary.packing import PackedTernary, pack, unpack
from tests.interop import samples


@pytest.mark.parametrize("shape", [(4, 128), (8, 300), (512, 640), (12, 7), (4096, 1024)], ids=str)
def test_rows_become_the_layout_of_the_kernels(shape: tuple[int, int]):
    codes_NK = np.random.default_rng(0).integers(-1, 2, shape, np.int8)
    packed = ternary_rows.from_codes((codes_NK + 1).astype(np.uint8))
    np.testing.assert_array_equal(packed, samples.pack(codes_NK))
    codes = ternary_rows.to_i2_s(packed, Arena())
    expected = pack(codes_NK.T, np.float32(1))
    np.testing.assert_array_equal(codes, expected.codes)
    read = PackedTernary(codes, expected.scale, expected.shape, "i2_s")
    np.testing.assert_array_equal(unpack(read), codes_NK.T)


def test_the_example_of_transformers():
    """Of the docstring of its `unpack_weights`."""
    packed = np.array([[0b10100001, 0b00011000], [0b10010000, 0b00001010]], np.uint8)
    expected = [[0, -1], [-1, 1], [-1, 1], [-1, 1], [1, 0], [0, -1], [1, -1], [1, -1]]
    codes = ternary_rows.to_i2_s(packed, Arena())
    read = PackedTernary(codes, np.float32(1), (2, 8), "i2_s")
    assert unpack(read).T.tolist() == expected


@pytest.mark.parametrize("field", range(4))
def test_a_code_that_is_no_weight(field: int):
    packed = np.zeros((2, 130), np.uint8)
    packed[1, 129] = 3 << 2 * field
    with pytest.raises(ValueError, match="no ternary weight"):
        ternary_rows.to_i2_s(packed, Arena())
