"""Which tests want the native kernels."""

from __future__ import annotations

import shutil

import pytest

from bitttt_jax import native

# Where there is a compiler the kernels must be there too.
needs_kernels = pytest.mark.skipif(
    native.instruction_set() is None and not any(map(shutil.which, ("c++", "g++", "clang++"))),
    reason="no C++ compiler",
)
