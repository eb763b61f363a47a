from __future__ import annotations

import itertools
import threading

import pytest

from bitttt_jax.data.prefetch import prefetch


def alive() -> list[str]:
    return [thread.name for thread in threading.enumerate() if "prefetch" in thread.name]


def test_yields_steps_in_order_from_start() -> None:
    assert list(prefetch(lambda step: step * 2, 3, 7)) == [(3, 6), (4, 8), (5, 10), (6, 12)]
    assert list(prefetch(lambda step: step, 3, 3)) == []
    assert alive() == []


def test_works_ahead_but_not_further_than_depth() -> None:
    made: list[int] = []
    reached = threading.Semaphore(0)

    def make(step: int) -> int:
        made.append(step)
        reached.release()
        return step

    ahead = prefetch(make, depth=2)
    assert next(ahead) == (0, 0)
    for _ in range(3):
        assert reached.acquire(timeout=10)
    assert made == [0, 1, 2]  # nothing more is submitted before the next one is taken
    assert next(ahead) == (1, 1)
    assert reached.acquire(timeout=10)
    assert made == [0, 1, 2, 3]
    ahead.close()
    assert alive() == []


def test_errors_appear_at_their_step() -> None:
    def make(step: int) -> int:
        if step == 2:
            raise OSError("disk gone")
        return step

    ahead = prefetch(make)
    assert list(itertools.islice(ahead, 2)) == [(0, 0), (1, 1)]
    with pytest.raises(OSError, match="disk gone"):
        next(ahead)
    assert alive() == []


def test_dropping_it_ends_the_thread() -> None:
    ahead = prefetch(lambda step: step)
    next(ahead)
    assert alive()
    del ahead
    assert alive() == []
