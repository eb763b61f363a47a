from __future__ import annotations

import jax
import numpy as np
import pytest

from bitttt_jax.ttt import inner
from bitttt_jax.ttt.inner import FastNorm
from tests.ttt import reference, samples


@pytest.mark.parametrize("is_mlp", [False, True])
def test_the_definition_is_the_papers(is_mlp):
    learner = samples.learner(is_mlp)
    fast, norm = jax.tree.map(lambda x: x[1], (learner.fast, learner.norm))
    head = reference.Head(fast, norm.scale, norm.bias, learner.token_scale_b)
    query, key, value = np.random.default_rng(0).normal(size=(3, samples.WIDTH))

    @jax.jit
    def run(fast, norm, query, key, value):
        loss = inner.reconstruction_loss
        gradient = jax.grad(loss)(fast, norm, key, value)
        return loss(fast, norm, key, value), gradient, inner.read_out(fast, norm, query)

    with jax.enable_x64(True):
        own = run(fast, FastNorm(*norm), query, key, value)
    predicted = reference.layer_norm(reference.predict(fast, query), *norm)
    expected = (
        reference.loss(fast, head, key, value),
        reference.loss_gradient(fast, head, key, value),
        query + predicted,
    )
    samples.assert_close(own, expected, 1e-12)


def test_token_scales_average_and_never_go_negative():
    offset = np.array([0.0, 0.25, -0.5, 1.0])
    with jax.enable_x64(True):
        scales = jax.jit(inner.token_scales)(offset)
    np.testing.assert_allclose(scales, [1, 0.75, 0, 1.25], rtol=1e-15)
