"""The values of GGUF's tensors: rows of floats, and ternary codes in the layout of the kernels."""

from __future__ import annotations

from typing import Literal

import ml_dtypes
import numpy as np
from gguf import quants
from gguf.constants import GGMLQuantizationType

from bitttt_jax.interop.gguf import I2_S, I2_S_TAIL, type_name
from bitttt_jax.ternary.packing import BLOCK

I2SLayout = Literal["x86", "arm"]
"""Order of the codes in I2_S tensors: `x86` has blocks of 128, as all published files do; `arm` has
blocks of 64, as Microsoft's own quantiser writes them where it was built for ARM processors."""

_FLOATS = (GGMLQuantizationType.F32, GGMLQuantizationType.F16, GGMLQuantizationType.BF16)
_SHIFTS = np.arange(6, -2, -2, dtype=np.uint8)
_ZEROS = np.uint8(0b01010101)  # four codes of the weight 0
_TQ_BYTES: dict[int, int] = {GGMLQuantizationType.TQ1_0: 54, GGMLQuantizationType.TQ2_0: 66}
TERNARY_TYPES = (I2_S, *_TQ_BYTES)
"""Types of tensors that are ternary, block by block."""
_LARGEST = float(ml_dtypes.finfo(ml_dtypes.bfloat16).max)
_ROWS_AT_ONCE = 16

_BYTES = np.arange(256)
# TQ2_0 has the layout of I2_S but for the order of a byte's four fields.
_FIELDS = np.stack([(_BYTES >> 2 * i & 3) << (6 - 2 * i) for i in range(4)])
_REVERSED_FIELDS = np.bitwise_or.reduce(_FIELDS).astype(np.uint8)
# TQ1_0 has five base-3 digits a byte, as a fraction of 256.
_DIGITS = np.stack([(_BYTES * 3**n % 256) * 3 >> 8 for n in range(5)], axis=-1).astype(np.uint8)


def rows(raw: np.ndarray, shape: tuple[int, ...], type_: int) -> np.ndarray:
    """A tensor's bytes as uint8 `[N, bytes of a row]`, without the tail of an I2_S tensor."""
    whole = raw[:-I2_S_TAIL] if type_ == I2_S else raw
    return whole.reshape(1 if len(shape) == 1 else shape[0], -1)


def float_rows(rows_NB: np.ndarray, type_: int) -> np.ndarray:
    """Float32 values `[N, K]` of some rows.

    Raises:
      ValueError: of a type that isn't dequantised here, or they aren't finite.
    """
    unknown = ValueError(f"{type_name(type_)} can't be dequantised here")
    if type_ == I2_S:
        raise unknown
    try:
        with np.errstate(all="ignore"):
            values = quants.dequantize(rows_NB, GGMLQuantizationType(type_))
    except NotImplementedError:  # what the library says of types that it only knows by name
        raise unknown from None
    check_range(values)
    return values


def check_range(values: np.ndarray) -> None:
    """Sees that values are finite, also as bfloat16.

    Raises:
      ValueError: one isn't.
    """
    if not max(values.max(), -values.min()) <= _LARGEST:
        raise ValueError("it holds values that aren't finite")


def ternary_scale(raw: np.ndarray, shape: tuple[int, ...], type_: int) -> float | None:
    """The scale of a tensor whose values are all -1, 0 or 1 times one scale; None for others.

    Raises:
      ValueError: the scale isn't finite.
    """
    if type_ == I2_S:
        scales = raw[-I2_S_TAIL:][:4].view(np.float32)
    elif type_ in _TQ_BYTES:
        blocks = raw.reshape(-1, _TQ_BYTES[type_])
        scales = _block_scales(blocks).astype(np.float32)
    elif type_ in _FLOATS:
        return _magnitude(rows(raw, shape, type_), type_)
    else:
        return None
    if not np.isfinite(scales).all():
        raise ValueError("its scale isn't a finite number")
    scales = scales[scales != 0]
    if not scales.size:
        return 0.0
    return float(scales[0]) if (scales == scales[0]).all() else None


def _block_scales(blocks: np.ndarray) -> np.ndarray:
    """float16 `[..., 1]` of the blocks `[..., bytes]` of TQ1_0 and TQ2_0, which end with them."""
    return np.ascontiguousarray(blocks[..., -2:]).view(np.float16)


def _magnitude(rows_NB: np.ndarray, type_: int) -> float | None:
    """The only magnitude of some rows of floats beside 0, where there is only one."""
    found = 0.0
    for start in range(0, len(rows_NB), _ROWS_AT_ONCE):
        values = np.abs(float_rows(rows_NB[start : start + _ROWS_AT_ONCE], type_))
        largest = float(values.max())
        if not ((values == 0) | (values == largest)).all():
            return None
        if largest and found and largest != found:
            return None
        found = largest or found
    return found


def ternary_codes(rows_NB: np.ndarray, type_: int, layout: I2SLayout = "x86") -> np.ndarray:
    """Codes of some rows of a ternary tensor in the layout `i2_s` (`ternary.packing`).

    Args:
      rows_NB: of a tensor that has a `ternary_scale`.
      type_: of the tensor.
      layout: of an I2_S tensor.

    Returns:
      uint8 `[N, 32 * ceil(K / 128)]`.

    Raises:
      ValueError: a code is none of the three.
    """
    if type_ == I2_S:
        codes = rows_NB if layout == "x86" else pack_codes(_arm_codes(rows_NB))
    elif type_ in _TQ_BYTES:
        blocks = rows_NB.reshape(len(rows_NB), -1, _TQ_BYTES[type_])
        convert = _tq1_to_i2_s if type_ == GGMLQuantizationType.TQ1_0 else _tq2_to_i2_s
        codes = np.where(_block_scales(blocks) == 0, _ZEROS, convert(blocks))
        codes = codes.reshape(len(rows_NB), -1)
    else:
        codes = pack_codes((np.sign(float_rows(rows_NB, type_)) + 1).astype(np.uint8))
    check_codes(codes)
    return codes


def check_codes(codes: np.ndarray) -> None:
    """Sees that no 2-bit code is 3.

    Raises:
      ValueError: one is.
    """
    words = np.ascontiguousarray(codes).view(np.uint64)  # rows have whole blocks of 32 bytes
    if np.any(words & (words >> 1) & 0x5555555555555555):
        raise ValueError("it holds the code 3, which is no ternary weight")


def pack_codes(codes_NK: np.ndarray) -> np.ndarray:
    """Puts codes 0, 1 and 2 into the layout `i2_s`; what is missing in the last block is 1."""
    N, K = codes_NK.shape
    padded = np.pad(codes_NK, ((0, 0), (0, -K % BLOCK)), constant_values=1)
    fields = padded.reshape(N, -1, 4, BLOCK // 4) << _SHIFTS[:, None]
    return np.bitwise_or.reduce(fields, axis=2).reshape(N, -1)


def unpack_codes(codes_NB: np.ndarray, width: int) -> np.ndarray:
    """Codes 0, 1 and 2 `[N, width]` out of rows in the layout `i2_s`."""
    fields = codes_NB.reshape(len(codes_NB), -1, 1, BLOCK // 4) >> _SHIFTS[:, None] & 3
    return fields.reshape(len(codes_NB), -1)[:, :width]


def _tq2_to_i2_s(blocks: np.ndarray) -> np.ndarray:
    return _REVERSED_FIELDS[blocks[..., :64]]


def _tq1_to_i2_s(blocks: np.ndarray) -> np.ndarray:
    """A block has 32 bytes of five digits, 16 of five, and 4 of four."""
    digits = _DIGITS[blocks[..., :52]].swapaxes(-1, -2)
    parts = digits[..., :32], digits[..., 32:48], digits[..., :4, 48:]
    codes = np.concatenate([part.reshape(*blocks.shape[:2], -1) for part in parts], axis=-1)
    return pack_codes(codes.reshape(-1, codes.shape[-1])).reshape(*blocks.shape[:2], -1)


def _arm_codes(rows_NB: np.ndarray) -> np.ndarray:
    """Codes `[N, K]` of rows in blocks of 64: byte j has the codes j, 16 + j, 32 + j and 48 + j."""
    fields = rows_NB.reshape(len(rows_NB), -1, 1, 16) >> _SHIFTS[:, None] & 3
    return fields.reshape(len(rows_NB), -1)
