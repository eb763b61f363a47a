from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bitttt_jax.errors import ConfigError
from bitttt_jax.ops import tables
from tests.kernels import needs_kernels

# Rows, width, entries.
# Rows, width, entries: of one row, of a tile of rows, and of more.
SHAPES = [
    (1, 64, 9),
    (3, 128, 4),
    (2, 192, 1),
    (8, 320, 71),
    (15, 64, 96),
    (16, 128, 40),
    (20, 2560, 33),
    (1, 256, 1000),
]
IMPLEMENTATIONS = [
    "xla",
    pytest.param("cpu", marks=needs_kernels),
]


def inputs(N: int, D: int, V: int, dtype="float32"):
    rng = np.random.default_rng([N, D, V])
    table = rng.normal(size=(V, D)) * 10 ** rng.uniform(-2, 2, (V, 1))
    return jnp.asarray(rng.normal(size=(N, D)), dtype), table.astype(np.float32)


def integer_reference(x, table: tables.QuantizedTable) -> np.ndarray:
    rows = np.asarray(x.astype(jnp.float32))
    largest = np.abs(rows).max(-1, keepdims=True)
    codes = np.round(rows * (np.float32(127) / largest)).astype(np.int32)
    sums = codes @ np.asarray(table.codes).astype(np.int32).T
    return sums.astype(np.float32) * (largest * np.float32(1 / 127) * np.asarray(table.scale))


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_products_are_those_of_the_integers(implementation, dtype, shape):
    x, values = inputs(*shape, dtype)
    table = tables.quantize_table(values)
    y = jax.jit(lambda x, t: tables.project(x, t, implementation=implementation))(x, table)
    assert y.dtype == jnp.float32
    if implementation == "cpu":
        np.testing.assert_array_equal(y, integer_reference(x, table))
    # XLA may round the scales' product in another order.
    np.testing.assert_allclose(y, integer_reference(x, table), rtol=5e-7)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("shape", [*SHAPES, (1, 1, 1), (2, 37, 5), (7, 127, 6)], ids=str)
def test_activations_that_are_not_rounded_are_multiplied_as_they_are(dtype, shape):
    x, values = inputs(*shape, dtype)
    table = tables.quantize_table(values)
    rows = np.asarray(table.codes, np.float64) * np.asarray(table.scale, np.float64)[:, None]
    y = jax.jit(tables.multiply)(x, table)
    assert y.dtype == jnp.float32
    magnitude = np.abs(np.asarray(x, np.float64)) @ np.abs(rows).T
    error = np.abs(y - np.asarray(x, np.float64) @ rows.T)
    assert (error <= 2e-6 * magnitude).all()


@needs_kernels
def test_few_rows_that_are_not_rounded_go_to_the_native_kernel():
    table = tables.quantize_table(jnp.ones((8, 64)))
    lowered = lambda N: jax.jit(tables.multiply).lower(jnp.zeros((N, 64)), table).as_text()
    assert "bitttt_int8_rows_matmul" in lowered(16)
    assert "bitttt_int8_rows_matmul" not in lowered(17)


def test_rounding_costs_half_a_step_at_most():
    _, values = inputs(1, 256, 50)
    table = tables.quantize_table(values)
    rows = tables.look_up(table, jnp.array([[3, 7], [49, 0]]))
    assert rows.shape == (2, 2, 256)
    error = np.abs(np.asarray(rows[1, 0]) - values[49])
    assert error.max() <= np.abs(values[49]).max() / 127 * 0.5001
    assert np.asarray(table.codes).min() >= -127  # what the kernels count on


def test_a_loop_reads_rows_of_bfloat16_as_they_are():
    table, index = jnp.asarray(inputs(1, 64, 50)[1], jnp.bfloat16), jnp.array([[3, 7], [49, 3]])
    read = lambda table, index: jax.lax.map(lambda i: tables.look_up(table, i), index)
    rows = jax.jit(read)(table, index)
    assert rows.dtype == jnp.bfloat16
    np.testing.assert_array_equal(rows, np.asarray(table)[np.asarray(index)])
    text = jax.jit(read).lower(table, index).compile().as_text()
    fused = [line for line in text.splitlines() if " fusion(" in line or " copy(" in line]
    assert not any("[50,64]" in line.split(" fusion(")[0] for line in fused), "all of the table"
    weights = jnp.asarray(np.random.default_rng(0).normal(size=rows.shape), jnp.float32)
    loss = lambda table: jnp.sum(read(table, index) * weights)
    slopes = np.zeros(table.shape, np.float32)
    np.add.at(slopes, np.asarray(index), np.asarray(weights))
    np.testing.assert_allclose(jax.grad(loss)(table), slopes, rtol=0, atol=0.02)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_products_with_groups_are_those_of_their_values(implementation, dtype, shape):
    x, values = inputs(*shape, dtype)
    table = jax.jit(tables.quantize_groups)(values)
    y = jax.jit(lambda x, t: tables.project(x, t, implementation=implementation))(x, table)
    rows = np.asarray(tables.look_up(table, jnp.arange(len(values))), np.float64)
    wide = np.asarray(x.astype(jnp.float32), np.float64)
    largest = np.abs(wide).max(-1, keepdims=True)
    codes = np.asarray(tables.quantize.int8_codes(x)[0], np.float64)
    np.testing.assert_allclose(codes * largest / 127, wide, atol=largest.max() / 250)
    sizes = np.abs(codes) @ np.abs(rows).T * largest / 127
    assert np.all(np.abs(y - codes @ rows.T * largest / 127) <= 1e-6 * sizes)


def refined(N: int, D: int, V: int):
    """Hidden states and a table with entries of one size, whose products show what is refined."""
    rng = np.random.default_rng([N, D, V])
    x = jnp.asarray(rng.normal(size=(N, D)), jnp.float32)
    values = rng.normal(size=(V, D)).astype(np.float32)
    return x, values, jax.jit(tables.refine_groups)(values)


def test_two_halves_are_eight_bits():
    _, values, table = refined(1, 300, 40)
    assert table.coarse.codes.shape == table.fine.shape == (40, 256)
    rows = np.asarray(tables.look_up(table, jnp.arange(40)))
    groups = [slice(start, start + 32) for start in range(0, 300, 32)]
    step = np.stack([np.abs(values[:, group]).max(-1) / 8 / 16 for group in groups], axis=-1)
    error = np.stack([np.abs((rows - values)[:, group]).max(-1) for group in groups], axis=-1)
    # Half a step; a value opposite to the largest may have to be 7 steps and 7 / 16.
    assert np.quantile(error / step, 0.5) < 0.56
    assert (error / step).max() <= 8
    of_int8 = np.asarray(tables.look_up(tables.quantize_table(values), jnp.arange(40)))
    assert np.mean((rows - values) ** 2) < np.mean((of_int8 - values) ** 2)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("shape", [(1, 64, 9), (3, 128, 200), (16, 320, 70), (40, 256, 700)])
def test_few_entries_or_many_rows_are_refined_in_full(implementation, shape):
    x, _, table = refined(*shape)
    y = jax.jit(lambda x, t: tables.project(x, t, implementation=implementation))(x, table)
    codes, scale = tables.quantize.int8_codes(x)
    rows = np.asarray(tables.look_up(table, jnp.arange(shape[2])), np.float64)
    expected = np.asarray(codes, np.float64) @ rows.T * np.asarray(scale)
    np.testing.assert_allclose(y, expected, rtol=0, atol=1e-4)


@needs_kernels
@pytest.mark.parametrize("N", [1, 15])
def test_the_largest_products_of_few_rows_are_refined(N):
    x, _, table = refined(N, 64, 30_000)
    y = np.asarray(jax.jit(tables.project)(x, table))
    coarse = np.asarray(tables.project(x, table.coarse))
    whole = np.asarray(tables.project(x, table, implementation="xla"))
    for row in range(N):
        close = np.abs(y[row] - whole[row]) < 1e-4
        number = np.sum(close & (y[row] != coarse[row]))
        assert 300 < number < 800  # about 30,000 / 64
        np.testing.assert_array_equal(y[row][~close], coarse[row][~close])
        assert close[np.argsort(coarse[row])[-300:]].all()
        assert np.argmax(y[row]) == np.argmax(whole[row])


@needs_kernels
def test_products_that_are_no_numbers_or_all_equal():
    x, _, table = refined(2, 64, 1000)
    y = np.asarray(tables.project(x.at[0].set(0).at[1, 3].set(jnp.nan), table))
    assert np.all(y[0] == 0) and y.shape == (2, 1000)
    assert not np.isfinite(y[1]).all() or np.all(y[1] == 0)


def test_groups_are_rounded_within_themselves():
    rng = np.random.default_rng(0)
    values = rng.normal(size=(7, 300)).astype(np.float32)
    values[3, 32:64] *= 100  # one large group
    values[5, :32] = 0
    table = tables.quantize_groups(values)
    assert (table.codes.shape, table.scale.shape) == ((7, 256), (7, 16))
    rows = np.asarray(tables.look_up(table, jnp.arange(7)))
    assert rows.shape == values.shape and np.all(rows[5, :32] == 0)
    groups = [slice(start, min(start + 32, 300)) for start in range(0, 300, 32)]
    for row, exact in zip(rows, values, strict=True):
        for group in groups:
            step = np.abs(exact[group]).max() / 8
            # Rounded, or a largest magnitude that the best scale leaves out.
            assert np.abs(row[group] - exact[group]).max() <= 1.5 * step
    normal = np.delete(values, [3, 5], axis=0), np.delete(rows, [3, 5], axis=0)
    plain_step = np.repeat(np.abs(normal[0][:, :288]).reshape(5, 9, 32).max(-1) / 7, 32, axis=1)
    plain = np.round(normal[0][:, :288] / plain_step) * plain_step
    error = lambda found: np.mean((found - normal[0][:, :288]) ** 2)
    assert error(normal[1][:, :288]) < 0.9 * error(plain)


def test_a_table_of_floats_is_multiplied_as_it_is():
    x, values = inputs(3, 64, 5)
    np.testing.assert_array_equal(tables.look_up(values, jnp.array([4])), values[[4]])
    np.testing.assert_allclose(tables.project(x, jnp.asarray(values)), x @ values.T, rtol=1e-4)


def test_the_kernel_refuses_widths_that_it_does_not_take():
    x, values = inputs(1, 40, 3)
    with pytest.raises(ConfigError, match="multiple of 64"):
        tables.project(x, tables.quantize_table(values), implementation="cpu")
