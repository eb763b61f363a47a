"""The native kernels against the XLA code that they stand in for, values and gradients."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bitttt_jax import native
from bitttt_jax.errors import ConfigError
from bitttt_jax.ops.convolution import causal_convolution
from tests.kernels import needs_kernels
from tests.ttt.kernel_checks import (
    check_close,
    check_ttt,
    normal,
    read,
    ttt_arguments,
    with_gradients,
)

ROOT = Path(__file__).parent.parent

# Rows, tokens, heads, features, mini-batch, mini-batches between saved weights; for either model.
TTT_SHAPES = [
    (2, 64, 2, 64, 16, 0),
    (1, 64, 2, 64, 16, 3),
    (2, 40, 3, 16, 8, 1),
    (2, 35, 1, 48, 7, 4),  # neither a multiple of a vector
    (1, 40, 1, 128, 20, 2),
    (1, 3, 1, 32, 1, 2),
]
# Rows, tokens, channels, taps.
CONVOLUTION_SHAPES = [(3, 37, 256, 4), (1, 9, 80, 8), (2, 2, 16, 4), (1, 5, 48, 1)]


def check_convolution(B: int, T: int, D: int, W: int, dtype: str) -> None:
    x, kernel, bias = normal(B, T, D).astype(dtype), normal(W, D), normal(D)
    position_BT = np.random.default_rng(5).integers(0, 6, (B, T))

    @functools.partial(jax.jit, static_argnames="implementation")
    def run(implementation, *arguments):
        function = lambda x, kernel, bias: causal_convolution(
            x, kernel, bias, position_BT, implementation=implementation
        )
        return with_gradients(function, *arguments)

    # In bfloat16 a last place: the sums are rounded once, wherever they were rounded before.
    tolerance = 1e-5 if dtype == "float32" else 2**-8
    check_close(run("cpu", x, kernel, bias), run("xla", x, kernel, bias), tolerance)


@needs_kernels
@pytest.mark.parametrize("shape", TTT_SHAPES)
def test_ttt_linear(shape):
    check_ttt("cpu", *shape)


@needs_kernels
@pytest.mark.parametrize("shape", TTT_SHAPES)
@pytest.mark.parametrize("hidden", [16, 160])
def test_ttt_mlp(shape, hidden):
    check_ttt("cpu", *shape, hidden)


@needs_kernels
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("shape", CONVOLUTION_SHAPES)
def test_convolution(shape, dtype):
    check_convolution(*shape, dtype)


@needs_kernels
@pytest.mark.parametrize("instruction_set", ["avx512vnni", "avx512", "avxvnni", "avx2", "baseline"])
def test_other_instruction_sets(instruction_set):
    """A process takes its choice once."""
    code = f"""
from bitttt_jax import native
from tests import test_native as checks
from tests.ops import test_argmax, test_attention, test_gate, test_norm, test_tables
from tests.ternary import test_matmul
if native.instruction_set() == {instruction_set!r}:
    for shape in checks.TTT_SHAPES[:4]:
        checks.check_ttt("cpu", *shape)
        checks.check_ttt("cpu", *shape, 48)
    for shape in checks.CONVOLUTION_SHAPES[:2]:
        checks.check_convolution(*shape, "bfloat16")
    for shape in test_argmax.SHAPES:
        test_argmax.test_numpy_agrees("cpu", shape)
    for dtype in ("float32", "bfloat16"):
        for shape in test_matmul.SHAPES:
            test_matmul.test_products_are_those_of_the_integers("cpu", dtype, shape)
        for shape in test_tables.SHAPES:
            test_tables.test_products_are_those_of_the_integers("cpu", dtype, shape)
            test_tables.test_products_with_groups_are_those_of_their_values("cpu", dtype, shape)
        for shape in test_attention.CACHES:
            test_attention.test_the_native_kernel_reads_a_cache_as_xla_does(*shape, dtype)
            test_attention.test_the_native_kernel_reads_int8_as_xla_does(*shape, dtype)
        for shape in test_norm.SHAPES:
            test_norm.test_the_native_kernel_normalises_as_xla_does(shape, dtype)
        for activation in test_gate.REFERENCES:
            test_gate.test_numpy_agrees(activation, "cpu", dtype, (3, 1, 48))
print(native.instruction_set())
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=os.environ | {"BITTTT_INSTRUCTION_SET": instruction_set},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    # A CPU that lacks it, or isn't an x86, has the baseline.
    assert done.stdout.split()[-1] in (instruction_set, "baseline", "neon")


@needs_kernels
def test_not_a_number_stays_one():
    x = np.full((1, 3, 16), np.nan, jnp.bfloat16)
    y = causal_convolution(x, normal(2, 16), normal(16), np.arange(3)[None], implementation="cpu")
    assert np.all(np.isnan(np.asarray(y, np.float32)))


def test_what_does_not_fit_is_left_to_xla_or_refused():
    arguments = (*ttt_arguments(1, 4, 1, 6, 2), None)
    read(*arguments, "auto", 0)
    with pytest.raises(ConfigError, match="widths are multiples of 16"):
        read(*arguments, "cpu", 0)


@needs_kernels
def test_a_library_for_a_later_xla_is_left_alone(monkeypatch: pytest.MonkeyPatch):
    """Made known to an older one, XLA would have no CPU at all."""
    assert native._interface_version() > 0
    monkeypatch.setattr(native, "_interface_version", lambda: 0)
    native.instruction_set.cache_clear()
    try:
        assert native.instruction_set() is None
    finally:
        native.instruction_set.cache_clear()


def test_without_the_library(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """As where no compiler was found, and where another program's file lies in its place."""
    for content in (None, b"not a library"):
        library = tmp_path / "kernels.so"
        if content:
            library.write_bytes(content)
        monkeypatch.setattr(native, "LIBRARY", library)
        native.instruction_set.cache_clear()
        try:
            assert native.instruction_set() is None
            assert native.choose("auto", fits=True, needs="") == "xla"
            with pytest.raises(ConfigError, match="compiler"):
                native.choose("cpu", fits=True, needs="")
        finally:
            native.instruction_set.cache_clear()
