"""Measures one case of the training benchmark once, in a process of its own.

    python -m benchmarks.train_case attention-float-bfloat16-T512-b4 [seconds] [steps] [--tiny]

Prints one line of JSON. `benchmarks.train_step` runs it for every case.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from benchmarks import measure
from benchmarks.train_cases import FULL, TINY, Case, Size, all_cases, make_config
from bitttt_jax.config import TrainConfig

_WARM_UP = 3
_DISTINCT_BATCHES = 8
_MEAN_LOG_LENGTH, _SPREAD_LOG_LENGTH = 6.0, 1.0  # half of the documents have over 400 tokens


class PhaseTimer:
    """Takes the place of a run's console in `compile_steps`, and notes how long its phases took."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextlib.contextmanager
    def phase(self, label: str, text: str) -> Iterator[None]:
        """Times a block."""
        start = time.perf_counter()
        yield
        self.seconds[text] = time.perf_counter() - start


def time_steps(
    dispatch: Callable[[int], Any], wait: Callable[[Any], None], seconds: float, at_least: int
) -> list[float]:
    """Times steps as a training loop runs them: the next one is begun before one is waited for.

    Args:
      dispatch: begins a step, given its number, and returns what to wait for.
      wait: waits for that.
      seconds: how long to go on after the warm-up.
      at_least: steps to time even if they take longer.

    Returns:
      Seconds between the ends of consecutive steps.
    """
    ends: list[float] = []
    waiting = dispatch(0)
    for number in itertools.count(1):
        running = dispatch(number)
        wait(waiting)
        waiting = running
        if number >= _WARM_UP:
            ends.append(time.perf_counter())
        if len(ends) > at_least and ends[-1] - ends[0] >= seconds:
            wait(waiting)
            return np.diff(ends).tolist()
    raise AssertionError


def random_rows(config: TrainConfig, count: int) -> dict[str, np.ndarray]:
    """Rows of random documents, packed as in training: int32 arrays `[count, seq_len]` by name."""
    from bitttt_jax.data.packing import PackedShard
    from bitttt_jax.data.shards import TokenShard

    rng = np.random.default_rng(0)
    total = (count + 1) * config.data.seq_len
    lengths = rng.lognormal(_MEAN_LOG_LENGTH, _SPREAD_LOG_LENGTH, total // 100 + 100).astype(int)
    offsets = np.concatenate([[0], np.cumsum(np.maximum(lengths, 8))]).astype(np.uint64)
    tokens = rng.integers(0, config.model.vocab_size, int(offsets[-1])).astype(np.uint16)
    align = config.model.ttt.mini_batch if config.model.uses_ttt else 1
    shard = PackedShard(
        TokenShard(tokens, offsets), seq_len=config.data.seq_len, align=align, eos_id=0
    )
    rows = [shard[i] for i in range(count)]
    return {f"{key[:-1]}BT": np.stack([row[key] for row in rows]) for key in rows[0]}


def measure_ours(case: Case, size: Size, seconds: float, at_least: int) -> dict[str, Any]:
    """Compiles the real train step for a case and times it."""
    import jax

    from bitttt_jax.models.counts import count
    from bitttt_jax.runs.directory import RunDirectory
    from bitttt_jax.training import hardware, setup

    hardware.keep_freed_memory()
    config = make_config(case, size)
    counts = count(config.model, case.seq_len)
    timer = PhaseTimer()
    # A folder that this process hasn't started a run in: nothing is written.
    compiled = setup.compile_steps(config, setup.make_mesh(config), RunDirectory("."), timer)
    memory = compiled.train_step.memory_analysis()
    state = setup.new_state(config, compiled)
    rows = random_rows(config, _DISTINCT_BATCHES * case.batch)
    split = lambda i: {k: v[i * case.batch : (i + 1) * case.batch] for k, v in rows.items()}
    batches = [compiled.train_feed.to_devices(split(i)) for i in range(_DISTINCT_BATCHES)]
    rss = measure.peak_rss_mib()

    def dispatch(number: int) -> Any:
        nonlocal state
        state, metrics = compiled.train_step(state, batches[number % _DISTINCT_BATCHES])
        return metrics

    with jax.set_mesh(compiled.mesh):
        steps = time_steps(dispatch, jax.block_until_ready, seconds, at_least)
    device_peaks = hardware.device_peak_bytes()
    return {
        "step_s": [measure.rounded(step) for step in steps],
        "positions": case.batch * case.seq_len,
        "tokens": float(np.mean(rows["segment_ids_BT"] != 0) * case.batch * case.seq_len),
        "skipped": int(state.skipped),
        "lower_and_compile_s": {k: round(v, 2) for k, v in timer.seconds.items()},
        "temp_mib": round(memory.temp_size_in_bytes / 2**20, 1),
        "argument_mib": round(memory.argument_size_in_bytes / 2**20, 1),
        "peak_rss_before_steps_mib": rss,
        "peak_rss_mib": measure.peak_rss_mib(),
        **({"device_peak_mib": round(max(device_peaks) / 2**20, 1)} if device_peaks else {}),
        "parameters": counts.total,
        "train_flops_per_token": counts.train_flops,
    }


def main(argv: list[str]) -> None:
    """Prints the measurement."""
    size = TINY if "--tiny" in argv else FULL
    name, *numbers = [arg for arg in argv if arg != "--tiny"]
    seconds, at_least = [*map(float, numbers), *(10.0, 8.0)[len(numbers) :]]
    case = all_cases(size, with_torch=True)[name]
    if case.peer:
        from benchmarks.peers.torch_transformer import measure_torch as run
    else:
        run = measure_ours
    print(json.dumps(run(case, size, seconds, int(at_least))))


if __name__ == "__main__":
    main(sys.argv[1:])
