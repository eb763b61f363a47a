"""The matrices of a GGUF file in memory: ternary codes, bfloat16, or int8 rows.

They come to lie in one piece, in large pages, each where JAX's CPU backend takes it as it is. Cores
share the work by rows, and what the system read from the file for them is let go of at once.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import math
import os
from collections.abc import Hashable, Iterator, Mapping
from typing import Any, Literal, TypeVar

import jax
import ml_dtypes
import numpy as np

from bitttt_jax.data.memory import large_buffer
from bitttt_jax.errors import DataError
from bitttt_jax.interop import gguf_tensors
from bitttt_jax.interop.foreign import WeightType
from bitttt_jax.interop.gguf import GGUFFile, TensorInfo
from bitttt_jax.interop.gguf_tensors import I2SLayout
from bitttt_jax.ops.quantize import INT8_MAX, SCALE_FLOOR
from bitttt_jax.ops.tables import QuantizedTable
from bitttt_jax.ternary.packing import PackedTernary, codes_shape

Form = Literal["ternary"] | WeightType
Key = TypeVar("Key", bound=Hashable)

_ALIGNMENT = 64
_RELEASED_BEFORE = 2**23
_VALUES_AT_ONCE = 2**20  # fewer cost more calls than the cache saves


@dataclasses.dataclass(frozen=True)
class Matrix:
    """A tensor `[N, K]` of a file that becomes a kernel or a table."""

    tensor: TensorInfo
    form: Form
    transposed: bool
    """Whether it is `[K, N]` where it is in floats."""
    order_N: np.ndarray | None = None
    """The file's rows in the order of ours, where that is another."""
    scale: float = 1.0
    """What the values are multiplied by: those of the file, or the codes -1, 0 and 1."""


def read_matrices(
    file: GGUFFile, matrices: Mapping[Key, Matrix], layout: I2SLayout = "x86"
) -> dict[Key, Any]:
    """Reads matrices, on all cores.

    Args:
      file: the file.
      matrices: by any key.
      layout: of I2_S tensors.

    Returns:
      By key, a `PackedTernary`, an array of floats, or a `QuantizedTable`.

    Raises:
      DataError: a tensor's type isn't dequantised here, or it holds what is no weight.
    """
    parts = {key: _parts(matrix) for key, matrix in matrices.items()}
    sizes = [math.prod(shape) * dtype.itemsize for part in parts.values() for shape, dtype in part]
    memory = large_buffer(sum(_aligned(size) for size in sizes))
    places: dict[Key, list[np.ndarray]] = {}
    start = 0
    for key, part in parts.items():
        places[key] = []
        for shape, dtype in part:
            size = math.prod(shape) * dtype.itemsize
            places[key].append(memory[start : start + size].view(dtype).reshape(shape))
            start += _aligned(size)
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        jobs = [
            pool.submit(_fill, file, matrix, places[key], rows, layout)
            for key, matrix in matrices.items()
            for rows in _shares(matrix)
        ]
        try:
            for job in jobs:
                job.result()
        finally:
            pool.shutdown(cancel_futures=True)
    return {key: _leaf(matrix, places[key]) for key, matrix in matrices.items()}


def _aligned(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT


def _parts(matrix: Matrix) -> list[tuple[tuple[int, ...], np.dtype]]:
    """Shapes and types of a matrix's arrays."""
    N, K = matrix.tensor.shape
    if matrix.form == "ternary":
        return [(codes_shape((K, N), "i2_s"), np.dtype(np.uint8))]
    if matrix.form == "int8":
        return [((N, K), np.dtype(np.int8)), ((N,), np.dtype(np.float32))]
    dtype = np.dtype(np.float32 if matrix.form == "float32" else ml_dtypes.bfloat16)
    return [((K, N) if matrix.transposed else (N, K), dtype)]


def _shares(matrix: Matrix) -> Iterator[slice]:
    N, K = matrix.tensor.shape
    size = max(1, _VALUES_AT_ONCE // K)
    return (slice(start, min(N, start + size)) for start in range(0, N, size))


def _fill(
    file: GGUFFile, matrix: Matrix, arrays: list[np.ndarray], share: slice, layout: I2SLayout
) -> None:
    """Writes some rows of a matrix into its arrays."""
    tensor, order_N = matrix.tensor, matrix.order_N
    rows_NB = gguf_tensors.rows(file.raw(tensor), tensor.shape, tensor.type)
    rows_NB = rows_NB[share if order_N is None else order_N[share]]
    try:
        if matrix.form == "ternary":
            arrays[0][share] = gguf_tensors.ternary_codes(rows_NB, tensor.type, layout)
        else:
            _fill_floats(matrix, arrays, share, gguf_tensors.float_rows(rows_NB, tensor.type))
    except ValueError as error:
        raise DataError(f"{file.path}: tensor {tensor.name} can't be used: {error}") from None
    row_bytes = rows_NB.shape[1]
    # With what the system brought in around it, also after it was let go of before.
    start = max(0, tensor.start + share.start * row_bytes - _RELEASED_BEFORE)
    file.release(start, tensor.start + share.stop * row_bytes - start)


def _fill_floats(matrix: Matrix, arrays: list[np.ndarray], share: slice, values_NK: np.ndarray):
    if matrix.scale != 1:
        with np.errstate(over="ignore"):
            values_NK = values_NK * np.float32(matrix.scale)
        gguf_tensors.check_range(values_NK)
    if matrix.form != "int8":
        rounded = values_NK.astype(arrays[0].dtype)
        if matrix.transposed:
            arrays[0][:, share] = rounded.T
        else:
            arrays[0][share] = rounded
        return
    # As in `quantize.int8_codes`.
    largest_N = np.maximum(values_NK.max(axis=1), -values_NK.min(axis=1))
    largest_N = np.maximum(largest_N, np.float32(SCALE_FLOOR))
    codes, scale_N = arrays
    codes[share] = np.rint(values_NK * (np.float32(INT8_MAX) / largest_N)[:, None])
    scale_N[share] = largest_N * np.float32(1 / INT8_MAX)


def _leaf(matrix: Matrix, arrays: list[np.ndarray]) -> PackedTernary | QuantizedTable | jax.Array:
    on_device = [jax.device_put(array) for array in arrays]
    if matrix.form == "ternary":
        N, K = matrix.tensor.shape
        return PackedTernary(on_device[0], jax.device_put(np.float32(matrix.scale)), (K, N), "i2_s")
    return QuantizedTable(*on_device) if matrix.form == "int8" else on_device[0]
