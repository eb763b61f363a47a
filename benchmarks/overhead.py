"""What a training run costs besides its steps: reading, logging, monitoring.

    python -m benchmarks.overhead
    python -m benchmarks.overhead --config=debug --rounds=5 --config.data.seq_len=128

Three ways take turns on the same state and the same batches: `bare`, the compiled step on batches
that lie ready; `loop`, the training loop with all reports off; `full`, the loop with metrics,
TensorBoard, health reports and console as configured. Validation and checkpoints are left out.
"""

from __future__ import annotations

import contextlib
import dataclasses
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tyro

from benchmarks import measure
from benchmarks.records import open_record, portable, write_record
from bitttt_jax.config import TrainConfig
from bitttt_jax.config_loading import FLAG_PREFIX, apply_overrides, load_config, with_vocabulary
from bitttt_jax.errors import run_main

WAYS = ("bare", "loop", "full")
_NEVER = 10**9
_WARM_UP = 5


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
    """The compiled step, which notes when each of its calls began."""

    def __init__(self, step: Any):
        self._step = step
        self.begun: list[float] = []

    def __call__(self, state: Any, batch: Any) -> Any:
        """Runs a step."""
        self.begun.append(time.perf_counter())
        return self._step(state, batch)


def main(argv: Sequence[str]) -> int:
    """Runs the benchmark; returns the exit code."""
    return run_main(_main, argv)


def _main(argv: Sequence[str]) -> None:
    overrides = [arg for arg in argv if arg.startswith(FLAG_PREFIX)]
    rest = [arg for arg in argv if not arg.startswith(FLAG_PREFIX)]
    flags = tyro.cli(Flags, args=rest, prog="python -m benchmarks.overhead", use_underscores=True)
    config = apply_overrides(load_config(flags.config), overrides)
    observed = measure.observe()
    name = f"overhead-{measure.label(observed['machine'])}.json"
    path = Path(flags.output or measure.ROOT / "benchmarks" / "results" / name)
    settings = {"config": flags.config, "overrides": portable(overrides), "steps": flags.steps}
    record = open_record(path, "overhead", observed, settings, force=True)
    record["calibration_gflops"] = [observed["calibration_gflops"]]
    with (
        tempfile.TemporaryDirectory(prefix="bitttt-overhead-") as scratch,
        Runner(config, Path(scratch), flags.steps) as runner,
    ):
        step_s: dict[str, list[float]] = {way: [] for way in WAYS}
        for turn in range(flags.rounds + 1):
            for way, found in step_s.items():
                seconds = runner.seconds_per_step(way)
                print(f"turn {turn}/{flags.rounds}  {way:4}  {1e3 * seconds:.2f} ms a step")
                if turn:
                    found.append(seconds)
    record["calibration_gflops"].append(measure.observe()["calibration_gflops"])
    record["step_s"] = {way: measure.spread(found) for way, found in step_s.items()}
    record["overhead_percent"] = {
        way: measure.spread(
            [100 * (own / bare - 1) for own, bare in zip(step_s[way], step_s["bare"], strict=True)]
        )
        for way in WAYS[1:]
    }
    write_record(path, record)
    print({way: f"{found['median']:.2f} %" for way, found in record["overhead_percent"].items()})
    print(path)


class Runner(contextlib.ExitStack):
    """Runs the same steps from the same state in any of the ways.

    Args:
      config: the run's.
      scratch: an empty folder.
      steps: how many are timed in a turn.
    """

    def __init__(self, config: TrainConfig, scratch: Path, steps: int):
        super().__init__()
        from bitttt_jax.runs.console import Console
        from bitttt_jax.runs.directory import RunDirectory
        from bitttt_jax.training import hardware, setup

        hardware.keep_freed_memory()
        self._steps, self._scratch = steps, scratch
        # The last timed step ends where another begins, and that one is no more timed.
        segment = _WARM_UP + steps + 1
        run = self.enter_context(RunDirectory.open(scratch / "run", writer=True))
        silent = Console(mode="silent")
        data = setup.open_data(config, run, silent)
        self._data = dataclasses.replace(data, validation=None)
        config = with_vocabulary(config, data.tokenizer.vocab_size)
        self._compiled = setup.compile_steps(config, setup.make_mesh(config), run, silent)
        self._initial = setup.new_state(config, self._compiled)
        feed = self._compiled.train_feed
        self._batches = [
            feed.to_devices(data.train.batch(step, feed.rows)) for step in range(segment)
        ]
        config = dataclasses.replace(
            config,
            steps=segment,
            eval=dataclasses.replace(config.eval, every_steps=0),
            checkpoint=dataclasses.replace(config.checkpoint, every_steps=0, every_minutes=0.0),
        )
        quiet = dataclasses.replace(
            config.log, every_steps=_NEVER, health_every_steps=0, tensorboard=False
        )
        self._trainers = {
            "loop": self._make_trainer("loop", dataclasses.replace(config, log=quiet), "silent"),
            "full": self._make_trainer("full", config, "plain"),
        }

    def seconds_per_step(self, way: str) -> float:
        """Runs one turn; returns the mean over its timed steps."""
        import jax

        from bitttt_jax.distributed.signals import StopRequest

        state = jax.block_until_ready(jax.tree.map(jax.numpy.copy, self._initial))
        if way == "bare":
            step = TimedStep(self._compiled.train_step)
            with jax.set_mesh(self._compiled.mesh):
                self._run_bare(step, state)
        else:
            trainer = self._trainers[way]
            step = TimedStep(self._compiled.train_step)
            trainer.compiled = dataclasses.replace(self._compiled, train_step=step)
            with StopRequest() as stop:
                trainer.fit(state, 0, stop)
        return (step.begun[_WARM_UP + self._steps] - step.begun[_WARM_UP]) / self._steps

    def _run_bare(self, step: TimedStep, state: Any) -> None:
        import jax

        waiting = None
        for batch in self._batches:
            state, metrics = step(state, batch)
            if waiting is not None:
                jax.block_until_ready(waiting)
            waiting = metrics
        jax.block_until_ready(waiting)

    def _make_trainer(self, way: str, config: TrainConfig, mode: Any) -> Any:
        from bitttt_jax.models.counts import count
        from bitttt_jax.runs.checkpoints import Checkpoints
        from bitttt_jax.runs.console import Console
        from bitttt_jax.runs.directory import RunDirectory
        from bitttt_jax.runs.metrics import MetricsWriter
        from bitttt_jax.training.loop import Trainer

        run = self.enter_context(RunDirectory.open(self._scratch / way, writer=True))
        run.start()
        output = self.enter_context((self._scratch / f"{way}.txt").open("w"))
        log = run.log_path if mode != "silent" else None
        return Trainer(
            config=config,
            run=run,
            console=self.enter_context(Console(mode=mode, file=output, log_file=log)),
            metrics=self.enter_context(MetricsWriter(run, tensorboard=config.log.tensorboard)),
            checkpoints=self.enter_context(Checkpoints(run.checkpoints_path, config.checkpoint)),
            data=self._data,
            compiled=self._compiled,
            counts=count(config.model, config.data.seq_len),
            sample=lambda params: "",
        )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
