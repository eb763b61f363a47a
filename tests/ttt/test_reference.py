"""The tests' own definition of test-time training has the limits that the paper names."""

from __future__ import annotations

import numpy as np
import pytest

from tests.ttt import reference, samples


def bare_head(width: int, mini_batch: int, rng) -> reference.Head:
    """No LayerNorm, and the gradients are summed, not averaged."""
    fast = {"w1": rng.normal(size=(width, width)), "b1": rng.normal(size=width)}
    return reference.Head(fast, np.ones(width), np.zeros(width), np.ones(mini_batch))


def test_one_mini_batch_from_zero_is_linear_attention():
    rng, T, K = np.random.default_rng(0), 7, 5
    q, k, v, rate = *rng.normal(size=(3, T, K)), rng.uniform(size=T)
    head = bare_head(K, T, rng)
    head = head._replace(fast={name: np.zeros_like(w) for name, w in head.fast.items()})
    outputs, *_ = reference.read_head(head, q, k, v, rate, bare=True)
    scores = np.tril(q @ k.T + 1)  # the bias is the weight of a constant feature
    np.testing.assert_allclose(outputs, scores @ (rate[:, None] * v), rtol=0, atol=1e-12)


def test_mini_batches_of_one_are_the_delta_rule():
    rng, T, K = np.random.default_rng(0), 7, 5
    q, k, v, rate = *rng.normal(size=(3, T, K)), rng.uniform(size=T) / K
    head = bare_head(K, 1, rng)
    outputs, *_ = reference.read_head(head, q, k, v, rate, bare=True)
    S = np.vstack([head.fast["w1"], head.fast["b1"]])
    for t in range(T):
        key, query = np.append(k[t], 1), np.append(q[t], 1)
        S = S + rate[t] * np.outer(key, v[t] - key @ S)
        np.testing.assert_allclose(outputs[t], query @ S, rtol=0, atol=1e-12)


@pytest.mark.parametrize("is_mlp", [False, True])
def test_the_gradient_is_that_of_finite_differences(is_mlp):
    learner = samples.learner(is_mlp)
    fast = {name: w[0] for name, w in learner.fast.items()}
    head = reference.Head(fast, learner.norm.scale[0], learner.norm.bias[0], np.ones(1))
    k, v = np.random.default_rng(0).normal(size=(2, samples.WIDTH))
    gradient = reference.loss_gradient(fast, head, k, v)
    for name, w in fast.items():
        direction = np.random.default_rng(1).normal(size=w.shape)
        at = lambda size, name=name, w=w, d=direction: reference.loss(
            fast | {name: w + size * d}, head, k, v
        )
        slope = (at(1e-5) - at(-1e-5)) / 2e-5
        np.testing.assert_allclose(np.vdot(gradient[name], direction), slope, rtol=1e-7)
