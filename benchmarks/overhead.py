"""What a training run costs besides its steps: reading, logging, monitoring.

    python -m benchmarks.overhead
    python -m benchmarks.overhead --config=debug --rounds=5 --config.data.seq_len=128

Three ways take turns on the same state and the same batches: `bare`, the compiled step on batches
that lie ready; `loop`, the training loop with all reports off; `full`, the loop with metrics,
TensorBoard, health reports and console as configured. Validation and checkpoints are left out.
"""

from __future__ import annotations

import dataclasses
import functools
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tyro

from benchmarks import measure
from benchmarks.records import open_record, write_record
from bitttt_jax.config import TrainConfig
from bitttt_jax.config_loading import FLAG_PREFIX, apply_overrides, load_config, with_vocabulary
from bitttt_jax.errors import run_main

_NEVER = 10**9
_WARM_UP = 5
WAYS = ("bare", "loop", "full")


@dataclasses.dataclass(frozen=True)
class Flags:
    """Measure the loop's overhead; results go to benchmarks/results/overhead-MACHINE.json.

    `--config.KEY=VALUE` arguments change the configuration.
    """

    config: str = "quickstart"
    """Preset or file of the run."""
    rounds: int = 4
    """Turns of each way, after one that isn't counted."""
    steps: int = 100
    """Timed steps of a turn; a multiple of log.health_every_steps gives its reports their share."""
    output: str = ""
    """The record, written anew; by default named by the machine."""


class TimedStep:
    """The compiled step; notes when each call began, and keeps the newest state.

    Args:
      step: the compiled function.
    """

    def __init__(self, step: Any):
        self._step = step
        self.state: Any = None
        self.begun: list[float] = []

    def __call__(self, state: Any, batch: Any) -> Any:
        """Runs a step."""
        self.begun.append(time.perf_counter())
        self.state, metrics = self._step(state, batch)
        return self.state, metrics


class Runner:
    """Runs the same steps in any of the ways.

    Args:
      config: the run's, its vocabulary size known.
      scratch: an empty folder.
      segment: steps of a turn.
    """

    def __init__(self, config: TrainConfig, scratch: Path, segment: int):
        import jax

        from bitttt_jax.models.counts import count
        from bitttt_jax.runs.console import Console
        from bitttt_jax.runs.directory import RunDirectory
        from bitttt_jax.training import hardware, setup

        getattr(hardware, "keep_freed_memory", lambda: None)()
        self._segment, self._scratch = segment, scratch
        run = RunDirectory.open(scratch / "run", writer=True)
        data = setup.open_data(config, run, Console(mode="silent"))
        config = with_vocabulary(config, data.tokenizer.vocab_size)
        self._data = dataclasses.replace(data, validation=None)
        self._compiled = setup.compile_steps(config, Console(mode="silent"))
        self._counts = count(config.model, config.data.seq_len)
        self._initial = setup.restore_or_init(config, self._compiled, None, None)
        self._batches = [
            self._compiled.to_devices(data.train.batch(step, self._compiled.rows))
            for step in range(segment)
        ]
        self._copy = jax.jit(functools.partial(jax.tree.map, jax.numpy.copy))
        self._trainers = {way: self._make_trainer(way, config) for way in WAYS[1:]}

    def _make_trainer(self, way: str, config: TrainConfig) -> tuple[Any, TimedStep]:
        from bitttt_jax.runs.checkpoints import Checkpoints
        from bitttt_jax.runs.console import Console
        from bitttt_jax.runs.directory import RunDirectory
        from bitttt_jax.runs.metrics import MetricsWriter
        from bitttt_jax.training.loop import Trainer

        quiet = way == "loop"
        log = config.log
        if quiet:
            log = dataclasses.replace(log, every_steps=_NEVER, health_every_steps=0)
        config = dataclasses.replace(
            config,
            steps=self._segment,
            log=log,
            eval=dataclasses.replace(config.eval, every_steps=0),
            checkpoint=dataclasses.replace(config.checkpoint, every_steps=0, every_minutes=0.0),
        )
        run = RunDirectory.open(self._scratch / way, writer=True)
        run.start()
        step = TimedStep(self._compiled.train_step)
        console = Console(
            mode="silent" if quiet else "plain",
            file=(self._scratch / f"{way}.txt").open("w"),
            log_file=None if quiet else run.log_path,
        )
        trainer = Trainer(
            config=config,
            run=run,
            console=console,
            metrics=MetricsWriter(run, tensorboard=log.tensorboard and not quiet),
            checkpoints=Checkpoints(run.checkpoints_path, config.checkpoint),
            data=self._data,
            compiled=dataclasses.replace(self._compiled, train_step=step),
            counts=self._counts,
            peak_flops=0.0,
            sample=lambda params: "",
        )
        return trainer, step
