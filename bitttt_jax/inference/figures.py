"""Live figures: how fast replies come."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from bitttt_jax.inference.requests import Completion


@dataclasses.dataclass(frozen=True)
class Percentiles:
    """Of measured times, in seconds."""

    p50: float
    p95: float
    p99: float

    @classmethod
    def of(cls, seconds: Sequence[float]) -> Percentiles:
        """Of some times, at least one."""
        return cls(*map(float, np.percentile(seconds, (50, 95, 99))))


@dataclasses.dataclass(frozen=True)
class Speed:
    """How fast some requests were answered."""

    requests: int
    prompt_tokens: int
    reused_tokens: int
    """Those of the prompts that hadn't to be read."""
    tokens: int
    """Of all replies."""
    tokens_per_second: float
    """Of all replies together, from the first request on to the end of the last reply."""
    first_token: Percentiles
    """From a request to its first token, its waiting included."""
    latency: Percentiles
    """From a request to the end of its reply."""

    @classmethod
    def of(cls, completions: Sequence[Completion]) -> Speed | None:
        """Of some replies; None where no token has come."""
        done = [each for each in completions if each.times.first]
        if not done:
            return None
        begin = min(each.times.submitted for each in done)
        end = max(each.times.finished for each in done)
        tokens = sum(len(each.tokens) for each in done)
        return cls(
            len(done),
            sum(each.prompt_tokens for each in done),
            sum(each.reused_tokens for each in done),
            tokens,
            tokens / max(end - begin, 1e-9),
            Percentiles.of([each.times.first - each.times.submitted for each in done]),
            Percentiles.of([each.times.finished - each.times.submitted for each in done]),
        )
