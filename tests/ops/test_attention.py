from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bitttt_jax.ops.attention import cached_attention, self_attention
from bitttt_jax.ops.quantize import int8_codes
from tests.kernels import needs_kernels

# Rows, tokens, heads, groups, width, slots, window: what the native kernel takes.
CACHES = [
    (1, 1, 4, 1, 64, 700, 0),
    (2, 3, 6, 2, 16, 300, 0),
    (1, 8, 5, 5, 128, 256, 40),
    (2, 1, 16, 1, 48, 33, 7),
    (1, 2, 7, 1, 256, 257, 0),
    (9, 1, 4, 2, 32, 300, 0),
]

attend = jax.jit(self_attention, static_argnames="window")
attend_cache = jax.jit(cached_attention, static_argnames=("window", "implementation"))


def inputs(B: int, T: int, H: int, G: int, K: int = 4) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    shapes = (B, T, H, K), (B, T, G, K), (B, T, G, K)
    return [2 * rng.normal(size=shape).astype(np.float32) for shape in shapes]


def plain_attention(q, k, v, segment_BT=None, window=0):
    """All scores at once."""
    T, repeats = q.shape[1], q.shape[2] // k.shape[2]
    k, v = jnp.repeat(k, repeats, axis=2), jnp.repeat(v, repeats, axis=2)
    age = jnp.arange(T)[:, None] - jnp.arange(T)
    allowed = ((age >= 0) & (age < (window or T)))[None, None]
    if segment_BT is not None:
        allowed &= (segment_BT[:, :, None] == segment_BT[:, None, :])[:, None]
    scores = jnp.einsum("bthk,bshk->bhts", q, k) / jnp.sqrt(q.shape[-1])
    weights = jax.nn.softmax(jnp.where(allowed, scores, -jnp.inf), axis=-1)
    return jnp.einsum("bhts,bshk->bthk", weights, v)


def segments(B: int, T: int) -> np.ndarray:
    """Documents of different lengths, and padding (segment 0) at the end of the rows."""
    rows = np.sort(np.random.default_rng(1).integers(1, 5, size=(B, T)), axis=1)
    rows[:, T - T // 8 :] = 0
    return rows


def assert_close(actual, expected, tolerance=3e-5):
    leaves = jax.tree.leaves(actual), jax.tree.leaves(expected)
    for a, e in zip(*leaves, strict=True):
        np.testing.assert_allclose(a, e, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(
    ("T", "H", "G", "window", "packed"),
    [
        (1, 2, 2, 0, False),
        (7, 4, 2, 3, True),
        (7, 4, 1, 1, False),
        (300, 2, 2, 0, False),
        (300, 4, 2, 70, True),
        (600, 2, 1, 300, True),
        (2400, 1, 1, 600, True),
    ],
)
def test_plain_softmax_agrees_in_value_and_gradient(T, H, G, window, packed):
    B = 2 if T < 1000 else 1
    q, k, v = inputs(B, T, H, G)
    segment_BT = segments(B, T) if packed else None
    probe = np.random.default_rng(2).normal(size=q.shape).astype(np.float32)

    def both(attention):
        o, pullback = jax.vjp(lambda *qkv: attention(*qkv, segment_BT, window), q, k, v)
        return o, pullback(probe)

    own, expected = jax.jit(lambda: (both(self_attention), both(plain_attention)))()
    assert own[0].shape == q.shape
    assert_close(own, expected)


def test_the_past_is_independent_of_the_future():
    before = inputs(1, 300, 2, 1)
    after = [np.concatenate([x[:, :200], x[:, 200:] + 1e3], axis=1) for x in before]
    outputs = [np.asarray(attend(*qkv))[:, :200] for qkv in (before, after)]
    np.testing.assert_array_equal(*outputs)


def test_bfloat16_keeps_its_type_and_sums_in_float32():
    qkv = [x.astype(jnp.bfloat16) for x in inputs(1, 300, 2, 1)]
    o = attend(*qkv)
    assert o.dtype == jnp.bfloat16
    wide = attend(*(x.astype(np.float32) for x in qkv))
    # Weights and outputs are rounded to 8 bits, 2^-8 relative, and values reach 7.
    np.testing.assert_allclose(np.asarray(o, np.float32), wide, rtol=0, atol=0.04)


@pytest.mark.parametrize(("H", "G", "window"), [(2, 2, 0), (4, 2, 5)])
def test_a_cache_in_any_order_equals_a_row(H, G, window):
    """Slots are permuted, and empty ones hold garbage."""
    B, T, slots = 2, 12, 17
    q, k, v = inputs(B, T, H, G)
    order = np.stack([np.random.default_rng(row).permutation(slots) for row in range(B)])
    position_BS = np.full((B, slots), -1)
    cached = [np.full((B, slots, G, 4), 1e4, np.float32) for _ in range(2)]
    for row in range(B):
        position_BS[row, order[row, :T]] = np.arange(T)
        for cache, values in zip(cached, (k, v), strict=True):
            cache[row, order[row, :T]] = values[row]
    expected = np.asarray(attend(q, k, v, window=window))
    read = functools.partial(attend_cache, window=window)
    for first, last in [(0, T), (4, 9)]:
        q_position = np.tile(np.arange(first, last), (B, 1))
        o = read(q[:, first:last], *cached, q_position, position_BS)
        assert_close(o, expected[:, first:last])
    # Rows that stand at different positions.
    at = np.array([3, 8])
    o = read(q[np.arange(2), at][:, None], *cached, at[:, None], position_BS)
    assert_close(o[:, 0], expected[np.arange(2), at])


@needs_kernels
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("B", "T", "H", "G", "K", "slots", "window"),
    CACHES,
)
def test_the_native_kernel_reads_a_cache_as_xla_does(B, T, H, G, K, slots, window, dtype):
    rng = np.random.default_rng([B, T, H])
    normal = lambda *shape: jnp.asarray(rng.normal(size=shape), dtype)
    filled = slots - slots // 3
    order = np.stack([rng.permutation(slots) for _ in range(B)])
    k_position = np.where(order < filled, order, -1)
    q_position = np.stack([rng.permutation(filled)[:T] for _ in range(B)])
    arguments = 2 * normal(B, T, H, K), normal(B, slots, G, K), normal(B, slots, G, K)
    found, expected = (
        attend_cache(
            *arguments, q_position, k_position, window=window, implementation=implementation
        ).astype(jnp.float32)
        for implementation in ("cpu", "xla")
    )
    # XLA rounds scaled queries and weights to bfloat16, the kernel only what it reads and returns.
    np.testing.assert_allclose(found, expected, atol=2e-5 if dtype == "float32" else 0.03)


def int8_heads(x_BSGK: jax.Array) -> tuple[jax.Array, jax.Array]:
    codes, scale = int8_codes(x_BSGK.astype(jnp.float32))
    return codes, scale[..., 0]


@needs_kernels
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("B", "T", "H", "G", "K", "slots", "window"), CACHES)
def test_the_native_kernel_reads_int8_as_xla_does(B, T, H, G, K, slots, window, dtype):
    rng = np.random.default_rng([B, T, H])
    normal = lambda *shape: jnp.asarray(rng.normal(size=shape), dtype)
    q, k, v = 2 * normal(B, T, H, K), normal(B, slots, G, K), normal(B, slots, G, K)
    (k8, k_scale), (v8, v_scale) = jax.jit(int8_heads)(k), jax.jit(int8_heads)(v)
    k_position = np.where(rng.random((B, slots)) < 0.7, np.arange(slots), -1)
    k_position[:, 0] = 0
    q_position = np.broadcast_to(np.arange(slots - T, slots), (B, T))
    found, expected = (
        np.asarray(
            attend_cache(
                q,
                k8,
                v8,
                q_position,
                k_position,
                window=window,
                k_scale_BSG=k_scale,
                v_scale_BSG=v_scale,
                implementation=implementation,
            ),
            np.float32,
        )
        for implementation in ("cpu", "xla")
    )
    np.testing.assert_allclose(found, expected, atol=2e-5 if dtype == "float32" else 0.03)
    exact = attend_cache(q, k, v, q_position, k_position, window=window)
    # Scores of the size of 10 come with errors of about 0.02, values with some of 0.01.
    assert 0 < np.max(np.abs(found - np.asarray(exact, np.float32))) < 0.15


@needs_kernels
def test_the_bits_of_bfloat16_are_read_as_bfloat16():
    rng = np.random.default_rng(0)
    q, k, v = (jnp.asarray(rng.normal(size=(2, 1, 3, 16)), jnp.bfloat16) for _ in range(3))
    bits = lambda x: jax.lax.bitcast_convert_type(x, jnp.uint16)
    position = np.zeros((2, 1), np.int32)
    for implementation in ("cpu", "xla"):
        read = functools.partial(attend_cache, implementation=implementation)
        found, expected = (
            np.asarray(read(q, *cached, position, position), np.float32)
            for cached in ((bits(k), bits(v)), (k, v))
        )
        np.testing.assert_array_equal(found, expected)


@needs_kernels
def test_the_native_kernel_of_a_token_that_sees_nothing():
    q, k, v = (jnp.ones((1, 1, 1, 16)) for _ in range(3))
    o = attend_cache(q, k, v, np.array([[3]]), np.array([[-1]]), implementation="cpu")
    np.testing.assert_array_equal(o, 0)
