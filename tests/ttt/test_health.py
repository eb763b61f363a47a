from __future__ import annotations

import jax
import numpy as np
import pytest

from bitttt_jax.ttt.health import inner_losses, learning_report
from bitttt_jax.ttt.state import Views
from tests.ttt import reference, samples


@pytest.mark.parametrize("is_mlp", [False, True])
def test_the_report_is_that_of_the_reference(is_mlp):
    b, count, batch = samples.MINI_BATCH, 3, 2
    learner, views = samples.learner(is_mlp), samples.views(batch, b * count)
    with jax.enable_x64(True):
        report = jax.jit(learning_report)(learner, views)

    def states_after(mini_batches):
        return reference.read(learner, Views(*(x[:, : mini_batches * b] for x in views)))[1]

    def mean_loss(states, token):
        losses = []
        for row in range(batch):
            for h in range(samples.HEADS):
                head = reference.Head({}, learner.norm.scale[h], learner.norm.bias[h], np.ones(b))
                key, value = views.key[row, token, h], views.value[row, token, h]
                losses.append(reference.loss(states[row][h][0], head, key, value))
        return np.mean(losses)

    def norm(states):
        leaves = [w for row in states for fast, _ in row for w in fast.values()]
        return np.sqrt(sum(np.sum(w**2) for w in leaves))

    states = [states_after(n) for n in range(count + 1)]
    tokens = range(b * count)
    expected = {
        "inner_loss_initial": np.mean([mean_loss(states[0], t) for t in tokens]),
        "inner_loss_current": np.mean([mean_loss(states[t // b], t) for t in tokens]),
        "inner_loss_updated": np.mean([mean_loss(states[t // b + 1], t) for t in tokens]),
        "fast_drift": norm(states[count]) / norm(states[0]),
        "inner_rate": views.rate.mean(),
    }
    assert report.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(report[name], value, rtol=1e-10, err_msg=name)


@pytest.mark.parametrize("is_mlp", [False, True])
def test_losses_of_mini_batches_are_those_of_the_reference(is_mlp):
    """From fast weights that have learned something; what isn't whole counts for nothing."""
    b, count, batch = samples.MINI_BATCH, 3, 2
    learner, views = samples.learner(is_mlp), samples.views(batch, b * count + 1)
    fast = samples.learned(is_mlp, batch)
    with jax.enable_x64(True):
        found = jax.jit(inner_losses)(learner, views, fast)
    assert found.shape == (batch, count, 3)
    expected = np.zeros((batch, count, 3))
    for row, h in np.ndindex(batch, samples.HEADS):
        initial = {name: w[h] for name, w in learner.fast.items()}
        current = {name: w[row, h] for name, w in fast.items()}
        norm = learner.norm.scale[h], learner.norm.bias[h]
        for n in range(count):
            query, key, value, rate = (x[row, n * b : (n + 1) * b, h] for x in views)
            head = reference.Head(current, *norm, learner.token_scale_b)
            updated = reference.read_head(head, query, key, value, rate)[1]
            losses = [
                np.mean([reference.loss(w, head, key[t], value[t]) for t in range(b)])
                for w in (initial, current, updated)
            ]
            expected[row, n] += np.array(losses) / samples.HEADS
            current = updated
    np.testing.assert_allclose(found, expected, rtol=1e-10)
