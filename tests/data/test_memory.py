from __future__ import annotations

import ml_dtypes
import numpy as np

from bitttt_jax.data.memory import Arena


def test_arrays_of_an_arena_are_aligned_and_apart():
    arena = Arena(piece=1000)
    shapes = [(3,), (7, 5), (), (0, 4), (600,), (2000,), (64,), (1, 2, 3)]
    types = [np.uint8, np.float32, np.float32, np.int8, np.uint8, np.uint8, ml_dtypes.bfloat16] * 2
    arrays = [arena.empty(shape, dtype) for shape, dtype in zip(shapes, types, strict=False)]
    for number, (array, shape, dtype) in enumerate(zip(arrays, shapes, types, strict=False), 1):
        assert array.shape == shape and array.dtype == dtype
        assert array.ctypes.data % 64 == 0 and not array.view(np.uint8 if shape else dtype).any()
        array[...] = number
    for number, array in enumerate(arrays, 1):
        assert (array == number).all()
