"""What a run would take, before it starts: memory by the compiler's count, time by real steps."""

from __future__ import annotations

import dataclasses
import time
from typing import Any

import jax
import numpy as np

from bitttt_jax.config import TrainConfig
from bitttt_jax.data.batches import Batch
from bitttt_jax.models.counts import Counts
from bitttt_jax.runs.console import Console
from bitttt_jax.runs.console_text import format_count, format_duration, format_memory
from bitttt_jax.runs.failures import Failure, does_not_fit
from bitttt_jax.training import hardware, setup

# Enough steps for a steady mean; of slow ones fewer.
_MOST_STEPS, _SECONDS = 20, 3.0


@dataclasses.dataclass
class Estimate:
    """What is known so far; None for what isn't."""

    parameters: dict[str, int] | None = None
    """How many are `ternary`, `float`, and initial fast weights (`fast`)."""
    packed_bytes: int | None = None
    """The model's size once packed."""
    device_bytes: int | None = None
    """What a device holds during a step, by the compiler's count."""
    device_limit_bytes: int | None = None
    """What a device can hold."""
    device_free_bytes: int | None = None
    """What of that nobody else holds."""
    fits: bool | None = None
    compile_s: float | None = None
    step_s: float | None = None
    """Measured time of a step, without the first."""
    tokens_per_s: float | None = None
    total_s: float | None = None
    """All steps of the run, without validations and checkpoints."""
    failure: Failure | None = None

    def words(self, steps: int) -> list[tuple[str, str]]:
        """The measured part as (label, text) lines.

        Args:
          steps: of the run.
        """
        lines = []
        if self.device_limit_bytes is not None and self.device_free_bytes is not None:
            free, limit = map(format_memory, (self.device_free_bytes, self.device_limit_bytes))
            lines.append(("limit", f"{free} of {limit} a device are free: the run fits"))
        if self.step_s and self.tokens_per_s and self.total_s:
            text = f"{_step_time(self.step_s)} a step, measured: "
            text += f"{format_count(self.tokens_per_s, 'tok/s')}; {steps:,} steps take "
            text += f"{format_duration(self.total_s)}, validations and checkpoints left out"
            lines.append(("time", text))
        return lines


def _step_time(seconds: float) -> str:
    return f"{1000 * seconds:.3g} ms" if seconds < 1 else format_duration(seconds)


def count_parameters(estimate: Estimate, counts: Counts) -> None:
    """Fills in what the configuration alone says."""
    estimate.parameters = {
        "ternary": counts.ternary, "float": counts.full, "fast": counts.fast,
    }  # fmt: skip
    estimate.packed_bytes = counts.packed_bytes


def measure_memory(estimate: Estimate, compiled: setup.Compiled, *, here: bool) -> None:
    """Fills in what the compiled step needs, and what the devices have.

    Args:
      estimate: filled in.
      compiled: the step.
      here: whether these devices are the ones that the run is meant for.

    Raises:
      OutOfMemoryError: they have less.
    """
    estimate.device_bytes = compiled.state_bytes + compiled.temporary_bytes
    room = hardware.device_room() if here else None
    if room is None:
        return
    estimate.device_limit_bytes, estimate.device_free_bytes = room
    estimate.fits = estimate.device_bytes <= estimate.device_free_bytes
    if not estimate.fits:
        raise does_not_fit(estimate.device_bytes, *room)


def measure_time(
    estimate: Estimate, config: TrainConfig, compiled: setup.Compiled, console: Console
) -> None:
    """Fills in how long steps take, by running some on random tokens from a new state."""
    with console.phase("measure", "steps on random tokens"):
        step_s = _seconds_per_step(config, compiled)
    estimate.step_s = step_s
    estimate.tokens_per_s = config.data.batch_size * config.data.seq_len / step_s
    estimate.total_s = config.steps * step_s


def _seconds_per_step(config: TrainConfig, compiled: setup.Compiled) -> float:
    batch = _random_batch(config, compiled.train_feed)
    state = setup.new_state(config, compiled)
    with jax.set_mesh(compiled.mesh):
        # The first is slower: memory is taken, and kernels are loaded.
        state, metrics = compiled.train_step(state, batch)
        jax.block_until_ready(metrics)
        seconds: list[float] = []
        # Processes that counted different numbers of steps would wait for each other for ever.
        while len(seconds) < _MOST_STEPS and (sum(seconds) < _SECONDS or jax.process_count() > 1):
            began = time.perf_counter()
            state, metrics = compiled.train_step(state, batch)
            jax.block_until_ready((state, metrics))
            seconds.append(time.perf_counter() - began)
    return sum(seconds) / len(seconds)


def _random_batch(config: TrainConfig, feed: setup.Feed) -> Any:
    """Rows without padding, on the devices."""
    shape = (len(feed.rows), config.data.seq_len)
    tokens = np.random.default_rng(config.seed).integers(0, config.model.vocab_size, (2, *shape))
    return feed.to_devices(
        Batch(
            tokens_BT=tokens[0].astype(np.int32),
            targets_BT=tokens[1].astype(np.int32),
            segment_ids_BT=np.ones(shape, np.int32),
            positions_BT=np.broadcast_to(np.arange(shape[1], dtype=np.int32), shape),
        )
    )
