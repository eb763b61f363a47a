from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from bitttt_jax.inference.figures import Memory, Percentiles, Speed
from bitttt_jax.inference.requests import Completion, Times


def completion(submitted: float, first: float, finished: float, tokens: int) -> Completion:
    times = Times(submitted, submitted, first, finished)
    return Completion("", tuple(range(tokens)), (), "length", 7, 2, 0, times)


def test_speed_of_several_requests():
    done = [completion(1.0, 1.5, 3.0, 30), completion(2.0, 3.5, 6.0, 20)]
    speed = Speed.of([*done, completion(9.0, 0.0, 9.5, 0)])  # cancelled before its first token
    assert speed is not None
    assert (speed.requests, speed.prompt_tokens, speed.reused_tokens) == (2, 14, 4)
    assert (speed.tokens, speed.tokens_per_second) == (50, 10.0)
    assert speed.first_token.p50 == pytest.approx(1.0)
    assert speed.latency == Percentiles.of([2.0, 4.0])
    assert Speed.of([]) is None


def test_percentiles():
    found = Percentiles.of(list(range(101)))
    assert dataclasses.astuple(found) == (50, 95, 99)
    assert dataclasses.astuple(Percentiles.of([0.3])) == (0.3, 0.3, 0.3)


def test_memory_of_this_process_grows_with_it():
    before = Memory.of_host()
    held = np.ones(2**23)
    after = Memory.of_host()
    assert after.used - before.used > 0.9 * held.nbytes
    assert after.peak >= after.used
    assert after.limit > after.free > 0


@pytest.mark.parametrize(("free", "pressure"), [(50, "low"), (14, "high"), (4, "full")])
def test_pressure(free: int, pressure: str):
    assert Memory(1, 1, 100, free).pressure == pressure
