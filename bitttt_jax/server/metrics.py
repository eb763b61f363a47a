"""What Prometheus is told.

By its own client library, which is small, needs nothing else, and knows the format's rules.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    PlatformCollector,
    ProcessCollector,
)
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_1_0_0, generate_latest

from bitttt_jax.server.worker import Worker

if TYPE_CHECKING:
    from bitttt_jax.inference.requests import Handle

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
_TOKEN_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1)


class Metrics:
    """Counts requests and tokens, and measures times.

    Args:
      worker: whose jobs are counted.
    """

    def __init__(self, worker: Worker):
        registry = self._registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)
        self._answers = Counter(
            "bitttt_requests_total", "Answers", ["path", "status"], registry=registry
        )
        self._tokens = Counter(
            "bitttt_tokens_total",
            "Tokens of replies, of prompts, and of those what earlier requests had read",
            ["kind"],
            registry=registry,
        )
        self._replies = Counter(
            "bitttt_replies_total", "Replies", ["finish_reason"], registry=registry
        )
        histogram = lambda name, text, buckets: Histogram(
            f"bitttt_{name}_seconds", text, registry=registry, buckets=buckets
        )
        self._queue_s = histogram("queue", "Until a prompt begins to be read", _SECONDS)
        self._first_s = histogram("first_token", "Until the first tokens are there", _SECONDS)
        self._reply_s = histogram("reply", "Until a reply is whole", _SECONDS)
        self._token_s = histogram("token", "Of a token after the first ones", _TOKEN_SECONDS)
        jobs = Gauge("bitttt_jobs", "Requests that are answered or wait", registry=registry)
        jobs.set_function(lambda: worker.waiting)
        ready = Gauge("bitttt_ready", "1 once the model is loaded", registry=registry)
        ready.set_function(lambda: float(worker.state == "ready"))

    def add_answer(self, path: str, status: int) -> None:
        """Counts an answer; `path` is the route's, so that there are few."""
        self._answers.labels(path, status).inc()

    def add_reply(self, handle: Handle) -> None:
        """Counts a reply that has ended."""
        times, count = handle.times, len(handle.tokens)
        self._tokens.labels("reply").inc(count)
        self._tokens.labels("prompt").inc(len(handle.prompt_T))
        self._tokens.labels("reused").inc(handle.reused_tokens)
        self._replies.labels(handle.finish_reason or "failed").inc()
        if times.started:
            self._queue_s.observe(times.started - times.submitted)
        if times.first:
            self._first_s.observe(times.first - times.submitted)
            self._reply_s.observe(times.finished - times.submitted)
            if count > 1:
                self._token_s.observe((times.finished - times.first) / (count - 1))

    def text(self) -> tuple[bytes, str]:
        """Everything, and its content type."""
        return generate_latest(self._registry), CONTENT_TYPE_PLAIN_1_0_0
