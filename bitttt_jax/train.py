"""`python -m bitttt_jax.train --config=… --workdir=…`: trains a model, or resumes a run.

JAX takes a second to import: the functions here do so only when it is clear that it is needed.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from bitttt_jax.config import TrainConfig
from bitttt_jax.config_loading import difference, to_json, with_vocabulary
from bitttt_jax.errors import ConfigError, ExitCode, run_main
from bitttt_jax.train_flags import TrainFlags, parse_train_flags

if TYPE_CHECKING:
    from bitttt_jax.data.tokenizers import Tokenizer
    from bitttt_jax.runs.console import Console
    from bitttt_jax.runs.directory import RunDirectory
    from bitttt_jax.runs.resume import ResumePlan


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    return run_main(_main, sys.argv[1:] if argv is None else argv)


def _main(argv: Sequence[str]) -> int:
    flags = parse_train_flags(argv)
    import jax

    from bitttt_jax.distributed import processes
    from bitttt_jax.runs.console import Console
    from bitttt_jax.runs.directory import RunDirectory
    from bitttt_jax.training.hardware import keep_freed_memory
    from bitttt_jax.training.setup import first_process_first

    processes.configure(flags.platform, flags.sim_devices)
    keep_freed_memory()
    processes.use_compile_cache()
    processes.initialize(flags.coordinator, flags.num_processes, flags.process_id)
    first = jax.process_index() == 0
    mode = flags.console if first else "silent"
    if flags.dry_run:
        return _dry_run(flags, Console(mode=mode))
    with first_process_first(lambda: RunDirectory.open(flags.workdir, writer=first)) as run:
        log = run.log_path if first else run.path / f"train.{jax.process_index()}.log"
        with Console(mode=mode, log_file=log) as console:
            try:
                return _train(flags, run, console, argv)
            except BaseException as error:
                failure = run.fail(error)
                console.failure(failure, run.error_path if run.error_path.exists() else None)
                return failure.exit_code


def _train(flags: TrainFlags, run: RunDirectory, console: Console, argv: Sequence[str]) -> ExitCode:
    plan = _prepare(flags, run)
    start, steps = plan.step or 0, flags.config.steps
    run.update(step=start, steps=steps)
    run.write_command([sys.executable, "-m", "bitttt_jax.train", *argv])
    if start >= steps:
        console.line("done", f"nothing to do in {run.path}: step {start}/{steps} is reached")
        run.finish("finished", ExitCode.OK)
        return ExitCode.OK

    from bitttt_jax.distributed.signals import StopRequest
    from bitttt_jax.runs.metrics import MetricsWriter
    from bitttt_jax.training import describe, setup
    from bitttt_jax.training.loop import Trainer
'''
