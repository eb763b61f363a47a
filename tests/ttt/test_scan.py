from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bitttt_jax.ttt.scan import read_documents, read_stream
from bitttt_jax.ttt.state import Views, initial_state
from tests.ttt import reference, samples

MODELS = pytest.mark.parametrize("is_mlp", [False, True], ids=["linear", "mlp"])
FORMS = pytest.mark.parametrize("form", ["dual", "primal"])
b = samples.MINI_BATCH

documents = jax.jit(read_documents, static_argnames=("form", "remat_group"))
stream = jax.jit(read_stream, static_argnames="form")
fresh = jax.jit(initial_state, static_argnums=1)


# One document a row, whose last mini-batch lacks a token.
BATCH, LENGTH = 3, 4 * b - 1
POSITION_BT = np.tile(np.arange(LENGTH), (BATCH, 1))


def cut(views: Views, row: int, start: int, stop: int) -> Views:
    """Tokens of one row."""
    return Views(*(x[row : row + 1, start:stop] for x in views))


@MODELS
@pytest.mark.parametrize(
    ("form", "dtype", "tolerance"),
    [("dual", "float64", 1e-10), ("dual", "float32", 1e-5), ("primal", "float64", 1e-10)],
)
def test_documents_are_read_as_the_reference_reads_them(is_mlp, form, dtype, tolerance):
    learner, views = samples.learner(is_mlp), samples.views(BATCH, LENGTH)
    expected, _ = reference.read(learner, views)
    with jax.enable_x64(dtype == "float64"):
        learner, views = samples.cast((learner, views), dtype)
        own = documents(learner, views, POSITION_BT, form=form)
    assert own.dtype == dtype
    samples.assert_close(own, expected, tolerance)


# Tokens of each row in each call: none, one, whole mini-batches and parts of them, at all offsets.
RAGGED = np.array([[7, 1, 0], [0, 4, 7], [3, 7, 7], [7, 2, 7], [6, 0, 3]])
WIDEST = 7
SINGLE = np.array([[1, 1, 1], [1, 0, 1], [1, 1, 0], [1, 1, 1], [0, 1, 1]])


def read_in_calls(learner, views, calls, state, form):
    """Outputs of each row without its padding, and the last state; padding is garbage."""
    batch = calls.shape[1]
    position, parts = np.zeros(batch, int), [[] for _ in range(batch)]
    for length_B in calls:
        width = WIDEST if length_B.max() > 1 else 1
        place = np.arange(width)
        source = np.minimum(position[:, None] + place, views.rate.shape[1] - 1)
        call = [
            np.take_along_axis(x, source.reshape(*source.shape, *(1,) * (x.ndim - 2)), 1)
            for x in views
        ]
        for x in call:
            x[place >= length_B[:, None]] = 1e3
        output, state = stream(learner, Views(*call), state, position, length_B, form=form)
        output = np.asarray(output)
        assert np.all(np.isfinite(output))
        for row, length in enumerate(length_B):
            parts[row].append(output[row, :length])
        position = position + length_B
    return [np.concatenate(part) for part in parts], state


@MODELS
@FORMS
def test_any_ragged_split_into_calls_reads_the_same(is_mlp, form):
    calls = [RAGGED, RAGGED[1:3]] if form == "primal" else [RAGGED, SINGLE, RAGGED[:1]]
    calls = np.concatenate(calls)
    lengths = calls.sum(axis=0)
    learner, views = samples.learner(is_mlp), samples.views(3, lengths.max())
    with jax.enable_x64(True):
        outputs, state = read_in_calls(learner, views, calls, fresh(learner.fast, 3), form)
    state = jax.tree.map(np.asarray, state)
    for row, length in enumerate(lengths):
        expected, states = reference.read(learner, cut(views, row, 0, length))
        samples.assert_close(outputs[row], expected[0], 1e-10)
        for h, (fast, gradient) in enumerate(states[0]):
            own = jax.tree.map(lambda x, row=row, h=h: x[row, h], (state.fast, state.grad))
            samples.assert_close(own, (fast, gradient), 1e-10)


@MODELS
@FORMS
def test_rows_of_length_zero_keep_their_state_bit_by_bit(is_mlp, form):
    learner, views = samples.learner(is_mlp), samples.views(3, WIDEST)
    with jax.enable_x64(True):
        state = fresh(learner.fast, 3)
        read = functools.partial(stream, learner, views, form=form)
        _, before = read(state, np.zeros(3, int), np.array([3, 7, 2]))
        _, after = read(before, np.array([3, 7, 2]), np.array([0, 5, 0]))
    before, after = (map(np.asarray, jax.tree.leaves(state)) for state in (before, after))
    for old, new in zip(before, after, strict=True):
        np.testing.assert_array_equal(old[::2], new[::2])
        assert np.any(old[1] != new[1])


@MODELS
@FORMS
def test_without_a_learning_rate_the_context_does_not_matter(is_mlp, form):
    learner, views = samples.learner(is_mlp), samples.views(BATCH, LENGTH)
    views = views._replace(rate=np.zeros_like(views.rate))
    with jax.enable_x64(True):
        own = documents(learner, views, POSITION_BT, form=form)
    for h in range(samples.HEADS):
        fast = {name: w[h] for name, w in learner.fast.items()}
        query = views.query[:, :, h]
        normed = reference.layer_norm(
            reference.predict(fast, query), learner.norm.scale[h], learner.norm.bias[h]
        )
        samples.assert_close(np.asarray(own)[:, :, h], query + normed, 1e-12)


@MODELS
@FORMS
def test_neither_the_future_nor_other_rows_are_seen_bit_by_bit(is_mlp, form):
    learner, views = samples.learner(is_mlp), samples.views(BATCH, LENGTH)
    with jax.enable_x64(True):
        before = np.asarray(documents(learner, views, POSITION_BT, form=form))
        for t in (0, b + 1, 2 * b):
            changed = Views(*(x.copy() for x in views))
            for x in changed:
                x[1, t] *= 1.5
            after = np.asarray(documents(learner, changed, POSITION_BT, form=form))
            np.testing.assert_array_equal(after[1, :t], before[1, :t])
            np.testing.assert_array_equal(after[::2], before[::2])
            assert np.all(np.any(after[1, t:] != before[1, t:], axis=(1, 2)))


# Segments of rows of 8 mini-batches: (document number, tokens); number 0 is padding.
ALIGNED = [
    [(1, 2 * b), (2, b), (3, 5 * b - 3), (0, 3)],
    [(0, 2 * b), (1, 3 * b - 1), (0, 1), (2, 3 * b)],
    [(1, 1), (0, b - 1), (2, 6 * b + 1), (0, b - 1)],
]
ASTRAY = [(1, 5), (2, 2 * b), (3, 6 * b - 6), (0, 1)]


def packed(layout):
    """Positions, which are 0 at padding, and segments of rows."""
    position = [np.concatenate([np.arange(n) * (s > 0) for s, n in row]) for row in layout]
    segment = [np.concatenate([np.full(n, s) for s, n in row]) for row in layout]
    return np.stack(position), np.stack(segment)


def assert_documents_alone(own, learner, views, layout, tolerance):
    own = np.asarray(own)
    for row, parts in enumerate(layout):
        stop = 0
        for number, length in parts:
            start, stop = stop, stop + length
            if number:
                expected, _ = reference.read(learner, cut(views, row, start, stop))
                samples.assert_close(own[row, start:stop], expected[0], tolerance)


@pytest.mark.parametrize(
    ("is_mlp", "form", "remat_group"),
    [
        (False, "dual", 0),
        (False, "dual", 3),
        (False, "primal", 0),
        (True, "dual", 0),
        (True, "primal", 0),
    ],
)
def test_packed_documents_and_padding_on_both_sides_equal_documents_alone(
    is_mlp, form, remat_group
):
    learner, views = samples.learner(is_mlp), samples.views(3, 8 * b)
    with jax.enable_x64(True):
        own = documents(learner, views, *packed(ALIGNED), form=form, remat_group=remat_group)
    assert np.all(np.isfinite(own))
    assert_documents_alone(own, learner, views, ALIGNED, 1e-10)


@MODELS
def test_documents_that_start_inside_a_mini_batch(is_mlp):
    """Exact in the primal form; in the dual form the row, and no other, is refused with NaN."""
    layout = [ALIGNED[0], ASTRAY, ALIGNED[1]]
    learner, views = samples.learner(is_mlp), samples.views(3, 8 * b)
    with jax.enable_x64(True):
        primal = documents(learner, views, *packed(layout), form="primal")
        dual = np.asarray(documents(learner, views, *packed(layout), form="dual"))
    assert_documents_alone(primal, learner, views, layout, 1e-10)
    assert np.all(np.isnan(dual[1]))
    assert_documents_alone(
        dual[[0, 2]], learner, Views(*(x[[0, 2]] for x in views)), ALIGNED[:2], 1e-10
    )


@MODELS
def test_gradients_of_packed_rows_are_those_of_finite_differences(is_mlp):
    """Of the learned initial values too, from which every document starts."""
    arguments = samples.learner(is_mlp), samples.views(3, 8 * b)
    position, segment = packed(ALIGNED)
    probe = np.where((segment == 0)[..., None, None], 0, samples.views(3, 8 * b, seed=4).query)

    def loss(learner, views):
        return jnp.sum(probe * read_documents(learner, views, position, segment))

    _, views_gradient = samples.gradients_checked(loss, arguments)
    assert not any(np.any(x[segment == 0]) for x in views_gradient)
