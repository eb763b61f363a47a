"""Live figures: how fast replies come, and how full the memory is."""

from __future__ import annotations

import dataclasses
import resource
import sys
from collections.abc import Sequence
from typing import Literal

import jax
import numpy as np
import psutil

from bitttt_jax.inference.requests import Completion
from bitttt_jax.runs.console_memory import FULL, HIGH

Pressure = Literal["low", "high", "full"]


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


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes of this process, or of the fullest accelerator."""

    used: int
    peak: int
    limit: int
    """What there is, this process's share included."""
    free: int
    """What is left, other processes considered."""

    @property
    def pressure(self) -> Pressure:
        """How far what there is has been used, by anybody."""
        share = 1 - self.free / self.limit
        return "full" if share > FULL else "high" if share > HIGH else "low"

    @classmethod
    def of_host(cls) -> Memory:
        """This machine's."""
        unit = 1 if sys.platform == "darwin" else 1024
        used, system = psutil.Process().memory_info().rss, psutil.virtual_memory()
        # The system's own count of the peak lags a little behind.
        peak = max(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit, used)
        return cls(used, peak, system.total, system.available)

    @classmethod
    def of_devices(cls) -> Memory | None:
        """The fullest device's; None where the backend keeps no statistics, as on CPUs."""
        stats = [device.memory_stats() or {} for device in jax.local_devices()]
        known = [each for each in stats if "bytes_limit" in each]
        if not known:
            return None
        worst = max(known, key=lambda each: each["bytes_in_use"] / each["bytes_limit"])
        used, limit = worst["bytes_in_use"], worst["bytes_limit"]
        return cls(used, worst["peak_bytes_in_use"], limit, limit - used)
