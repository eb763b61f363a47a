"""Batches made ahead in a background thread."""

from __future__ import annotations

import collections
import itertools
from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Batch = TypeVar("Batch")


def prefetch(
    make: Callable[[int], Batch], start: int = 0, stop: int | None = None, *, depth: int = 2
) -> Generator[tuple[int, Batch], None, None]:
    """Yields (step, make(step)) for the steps from `start` on, up to `depth` of them made ahead.

    What `make` raises is raised here, at its step. The thread ends when the generator is
    exhausted, closed (`contextlib.closing`), or dropped.

    Args:
      make: called in one background thread, for one step at a time, in order.
      start: first step.
      stop: the step to end before; None for no end.
      depth: most results that exist beyond the one given out.
    """
    steps = itertools.count(start) if stop is None else iter(range(start, stop))
    with ThreadPoolExecutor(1, thread_name_prefix="prefetch") as pool:
        ahead: collections.deque[tuple[int, Future[Batch]]] = collections.deque()
        try:
            while True:
                for step in itertools.islice(steps, depth + 1 - len(ahead)):
                    ahead.append((step, pool.submit(make, step)))
                if not ahead:
                    return
                step, future = ahead.popleft()
                yield step, future.result()
        finally:
            for _, future in ahead:
                future.cancel()
