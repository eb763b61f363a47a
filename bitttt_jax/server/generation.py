"""The job of a request that asks for text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from bitttt_jax.server.metrics import Metrics
from bitttt_jax.server.worker import Job

if TYPE_CHECKING:
    from bitttt_jax.inference.engine import Engine
    from bitttt_jax.inference.requests import Handle, Request


def generation(request: Request, metrics: Metrics) -> Job:
    """Tells the request's handle once it is taken, then its pieces."""

    def job(engine: Engine) -> Iterator[Sequence[Any]]:
        handle = engine.submit(request)
        try:
            yield [handle]
            while not handle.is_done:
                yield handle.new_pieces()
            yield handle.new_pieces()
            if handle.error:
                raise handle.error
        finally:
            end(handle, metrics)

    return job


def end(handle: Handle, metrics: Metrics) -> None:
    """Leaves a request, which is cancelled if it isn't done."""
    if not handle.is_done:
        handle.cancel()
        handle.finish("cancelled")
    metrics.add_reply(handle)
