"""Tensors' values against the published library's."""

from __future__ import annotations

import numpy as np
import pytest
from gguf import quants
from gguf.constants import GGMLQuantizationType as Type

from bitttt_jax.interop import gguf_tensors
from bitttt_jax.interop.gguf import I2_S
from bitttt_jax.ternary.packing import PackedTernary, pack, unpack
from tests.interop.gguf_files import i2_s_bytes

TQ_TYPES = [Type.TQ1_0, Type.TQ2_0]


def ternary(rows: int, width: int, seed: int = 0) -> np.ndarray:
    """Codes -1, 0 and 1."""
    return np.random.default_rng(seed).integers(-1, 2, (rows, width)).astype(np.int8)


def read_codes(rows_NB: np.ndarray, width: int, type_: int, layout="x86") -> np.ndarray:
    """Weights -1, 0 and 1 `[N, K]`, as the kernels' own layout has them."""
    codes = gguf_tensors.ternary_codes(rows_NB, type_, layout)
    scale = np.float32(1)
    return np.asarray(unpack(PackedTernary(codes, scale, (width, len(rows_NB)), "i2_s"))).T


@pytest.mark.parametrize("type_", TQ_TYPES)
def test_ternary_blocks_are_exact_both_ways(type_: Type):
    codes = ternary(48, 512)
    codes[3, 256:] = 0  # a block of scale 0
    values = codes * np.float32(0.75)
    data = quants.quantize(values, type_)
    assert gguf_tensors.ternary_scale(data.reshape(-1), values.shape, type_) == 0.75
    np.testing.assert_array_equal(read_codes(data, 512, type_), codes)
    packed = gguf_tensors.ternary_codes(data, type_)
    again = (gguf_tensors.unpack_codes(packed, 512).astype(np.float32) - 1) * np.float32(0.75)
    np.testing.assert_array_equal(quants.quantize(again, type_), data)


@pytest.mark.parametrize("type_", TQ_TYPES)
def test_codes_of_a_block_of_scale_0_mean_nothing(type_: Type):
    data = quants.quantize(ternary(2, 512) * np.float32(2), type_)
    data[1, -2:] = 0
    expected = quants.dequantize(data, type_) / 2
    assert not expected[1, 256:].any()
    np.testing.assert_array_equal(read_codes(data, 512, type_), expected)
    assert gguf_tensors.ternary_scale(data.reshape(-1), (2, 512), type_) == 2


@pytest.mark.parametrize("type_", TQ_TYPES)
def test_blocks_of_several_scales_are_told(type_: Type):
    values = ternary(2, 512) * np.repeat(np.float32([1, 1, 1, 2]), 256).reshape(2, 512)
    data = quants.quantize(values, type_)
    assert gguf_tensors.ternary_scale(data.reshape(-1), (2, 512), type_) is None
    np.testing.assert_array_equal(gguf_tensors.float_rows(data, type_), values)


@pytest.mark.parametrize("layout", ["x86", "arm"])
def test_i2_s_in_either_layout(layout):
    codes = ternary(5, 384)
    raw = i2_s_bytes(codes * np.float32(1.555), layout)
    assert gguf_tensors.ternary_scale(raw, codes.shape, I2_S) == np.float32(1.555)
    rows_NB = gguf_tensors.rows(raw, codes.shape, I2_S)
    np.testing.assert_array_equal(read_codes(rows_NB, 384, I2_S, layout), codes)


def test_i2_s_is_the_layout_of_the_kernels():
    codes = ternary(5, 384)
    packed = pack(codes.T, np.float32(1))
    rows_NB = gguf_tensors.rows(i2_s_bytes(codes), codes.shape, I2_S)
    np.testing.assert_array_equal(rows_NB, packed.codes)
    assert gguf_tensors.ternary_codes(rows_NB, I2_S) is rows_NB, "nothing is copied"


@pytest.mark.parametrize(("width", "type_"), [(384, Type.F32), (100, Type.F16), (7, Type.BF16)])
def test_floats_of_one_magnitude_are_ternary(width: int, type_: Type):
    codes = ternary(40, width)
    data = np.ascontiguousarray(quants.quantize(codes * np.float32(0.3), type_))
    rows_NB = data.view(np.uint8).reshape(40, -1)
    scale = gguf_tensors.ternary_scale(rows_NB.reshape(-1), codes.shape, type_)
    assert scale == np.abs(quants.dequantize(data, type_)).max()
    np.testing.assert_array_equal(read_codes(rows_NB, width, type_), codes)


def test_other_floats_are_not_ternary():
    values = ternary(40, 8).astype(np.float32)
    values[39, 7] = 0.5
    raw = values.view(np.uint8).reshape(-1)
    assert gguf_tensors.ternary_scale(raw, values.shape, Type.F32) is None
    raw = (values * 0).view(np.uint8).reshape(-1)
    assert gguf_tensors.ternary_scale(raw, values.shape, Type.F32) == 0


@pytest.mark.parametrize("byte", [0b11000000, 0b00110000, 0b00001100, 0b00000011])
@pytest.mark.parametrize("type_", [I2_S, Type.TQ2_0])
def test_the_code_3_is_refused(type_: int, byte: int):
    data = np.full((1, 66), 0, np.uint8) if type_ == Type.TQ2_0 else np.zeros((1, 64), np.uint8)
    data[0, 65 if type_ == Type.TQ2_0 else 0] |= 0b00111100 if type_ == Type.TQ2_0 else 0
    gguf_tensors.ternary_codes(data, type_)
    data[0, 17] = byte
    with pytest.raises(ValueError, match="the code 3"):
        gguf_tensors.ternary_codes(data, type_)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_scales_and_values_are_finite(value: float):
    data = quants.quantize(ternary(1, 256).astype(np.float32), Type.TQ2_0)
    data[0, -2:] = np.float16([value]).view(np.uint8)
    with pytest.raises(ValueError, match="scale isn't a finite number"):
        gguf_tensors.ternary_scale(data[0], (1, 256), Type.TQ2_0)
    with pytest.raises(ValueError, match="aren't finite"):
        gguf_tensors.float_rows(data, Type.TQ2_0)


@pytest.mark.parametrize("type_", [I2_S, Type.Q8_K])
def test_what_is_not_dequantised_is_named(type_: int):
    with pytest.raises(ValueError, match="can't be dequantised here"):
        gguf_tensors.float_rows(np.zeros((1, 292), np.uint8), type_)
