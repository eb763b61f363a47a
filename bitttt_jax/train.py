"""`python -m bitttt_jax.train --config=… --workdir=…`: trains a model, or resumes a run.

JAX takes a second to import: the functions here do so only when it is clear that it is needed.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import sys
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from bitttt_jax.config import TrainConfig
from bitttt_jax.config_loading import difference, to_json, with_vocabulary
from bitttt_jax.errors import ConfigError, ExitCode, exit_process, run_main
from bitttt_jax.train_flags import TrainFlags, parse_train_flags

if TYPE_CHECKING:
    from bitttt_jax.data.tokenizers import Tokenizer
    from bitttt_jax.runs.console import Console
    from bitttt_jax.runs.directory import RunDirectory
    from bitttt_jax.runs.resume import ResumePlan
    from bitttt_jax.training.estimate import Estimate


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    return run_main(_main, sys.argv[1:] if argv is None else argv)


def _main(argv: Sequence[str]) -> int:
    flags = parse_train_flags(argv)
    import jax

    from bitttt_jax.distributed import processes
    from bitttt_jax.runs.console import Console
    from bitttt_jax.runs.directory import RunDirectory
    from bitttt_jax.runs.failures import classify
    from bitttt_jax.training.first_process import first_process_first
    from bitttt_jax.training.hardware import keep_freed_memory

    processes.configure(flags.platform, flags.sim_devices)
    keep_freed_memory()
    processes.use_compile_cache()
    processes.initialize(flags.coordinator, flags.num_processes, flags.process_id)
    first = jax.process_index() == 0
    try:
        if flags.dry_run:
            return _dry_run(flags, first)
        opened = first_process_first(lambda: RunDirectory.open(flags.workdir, writer=first))
        with opened as run:
            plan = _prepare(flags, run)  # until here the folder may be another run's
            log = run.log_path if first else run.path / f"train.{jax.process_index()}.log"
            with Console(mode=flags.console if first else "silent", log_file=log) as console:
                return _recorded(lambda: _train(flags, run, plan, console, argv), run, console)
    except Exception as error:
        raise classify(error) or error from None


def _prepare(flags: TrainFlags, run: RunDirectory) -> ResumePlan:
    """Decides how the run starts, and makes its folder ready; process 0 does so for all."""
    from bitttt_jax.runs import resume
    from bitttt_jax.training.first_process import first_process_first

    config_json = to_json(flags.config)
    plan = first_process_first(lambda: resume.prepare(run, config_json, flags.resume))
    if run.read_config() != config_json:
        raise ConfigError(
            f"this process doesn't see what process 0 wrote to {run.path}",
            fix="a --workdir on a file system that all hosts share",
        )
    return plan


def _recorded(work: Callable[[], ExitCode], run: RunDirectory, console: Console) -> int:
    """Does the work of a run; a failure is told in its folder and on the console."""
    try:
        return work()
    except BaseException as error:
        failure = run.fail(error)
        console.failure(failure, run.error_path if run.error_path.exists() else None)
        return failure.exit_code


def _train(
    flags: TrainFlags, run: RunDirectory, plan: ResumePlan, console: Console, argv: Sequence[str]
) -> ExitCode:
    start, steps = plan.step or 0, flags.config.steps
    run.update(step=start, steps=steps)
    run.write_command([sys.executable, "-m", "bitttt_jax.train", *argv])
    if start >= steps:
        console.line("done", f"nothing to do in {run.path}: step {start}/{steps} is reached")
        run.finish("finished", ExitCode.OK)
        return ExitCode.OK

    from bitttt_jax.distributed.signals import StopRequest
    from bitttt_jax.models.counts import count
    from bitttt_jax.runs.metrics import MetricsWriter
    from bitttt_jax.training import describe, hardware, setup
    from bitttt_jax.training.loop import Trainer

    mesh = setup.make_mesh(flags.config)
    console.banner(f"bitttt-jax  {_how(run, plan)}", [("version", describe.describe_versions())])
    for key, before, now in difference(flags.preset, flags.config):
        console.line("config", f"{key} = {now}  ({flags.spec}: {before})")
    run.update(state="compiling")
    data = setup.open_data(flags.config, run, console)
    config = with_vocabulary(flags.config, data.tokenizer.vocab_size)
    counts = count(config.model, config.data.seq_len)
    console.line("model", describe.describe_model(config, counts))
    console.line("data", describe.describe_data(config.data, data))
    console.line("optim", describe.describe_optimizer(config))
    console.line("mesh", describe.describe_mesh(mesh, config))
    if data.validation is None:
        console.warning("no document is held out: training goes on without validation")
        run.event("warn", text="no held-out documents")
    with (
        StopRequest(config.max_minutes) as stop,
        setup.open_checkpoints(config, run) as checkpoints,
        MetricsWriter(run, tensorboard=config.log.tensorboard, resumed_step=plan.step) as metrics,
    ):
        compiled = setup.compile_steps(config, mesh, run, console)
        console.line("memory", describe.describe_memory(compiled))
        console.line("log", f"tensorboard --logdir={run.tensorboard_path}   {run.metrics_path}")
        trainer = Trainer(
            config=config,
            run=run,
            console=console,
            metrics=metrics,
            checkpoints=checkpoints,
            data=data,
            compiled=compiled,
            counts=counts,
            sample=functools.partial(_continue_prompt, config, data.tokenizer),
        )
        if plan.step is None:
            state = setup.new_state(config, compiled)
        else:
            state = setup.saved_state(config, compiled, checkpoints, plan.step)
        console.memory(hardware.memory_by_host(), platform=mesh.devices.flat[0].platform)
        return trainer.fit(state, start, stop)


def _how(run: RunDirectory, plan: ResumePlan) -> str:
    if plan.step is not None:
        return f"RESUMING {run.path} from step {plan.step}"
    moved = f"  (earlier files moved to {plan.moved_to})" if plan.moved_to else ""
    return f"NEW RUN {run.path}{moved}   (Ctrl-C saves and stops)"


def _continue_prompt(config: TrainConfig, tokenizer: Tokenizer, params: Any) -> str:
    from bitttt_jax.inference.model import Model
    from bitttt_jax.inference.sampling import SamplingConfig

    completion = Model(config, params, tokenizer, "").generate(
        config.eval.sample_prompt,
        max_tokens=config.eval.sample_tokens,
        sampling=SamplingConfig(temperature=0.8, top_p=0.95),
        seed=config.seed,
    )
    return completion.text


def _dry_run(flags: TrainFlags, first: bool) -> ExitCode:
    """Tells what the run would take; with `--console=json` in one object, also where it fails."""
    from bitttt_jax.runs.console import Console
    from bitttt_jax.runs.failures import describe_failure
    from bitttt_jax.runs.files import to_row
    from bitttt_jax.training.estimate import Estimate

    estimate, as_json = Estimate(), flags.console == "json"
    try:
        with Console(mode=flags.console if first and not as_json else "silent") as console:
            _estimate(flags, estimate, console)
    except Exception as error:
        estimate.failure = describe_failure(error)
        raise
    finally:
        if first and as_json:
            row = to_row({"kind": "estimate", **dataclasses.asdict(estimate)})
            print(json.dumps(row, allow_nan=False), flush=True)
    return ExitCode.OK


def _estimate(flags: TrainFlags, estimate: Estimate, console: Console) -> None:
    """Does all that needs neither the text nor a run directory, some steps included."""
    from bitttt_jax.models.counts import count
    from bitttt_jax.runs.directory import RunDirectory
    from bitttt_jax.training import describe, setup
    from bitttt_jax.training.estimate import count_parameters, measure_memory, measure_time

    mesh = setup.make_mesh(flags.config)
    config = with_vocabulary(flags.config, setup.vocabulary_ahead(flags.config))
    counts = count(config.model, config.data.seq_len)
    count_parameters(estimate, counts)
    console.line("model", describe.describe_model(config, counts))
    console.line("optim", describe.describe_optimizer(config))
    console.line("mesh", describe.describe_mesh(mesh, config))
    began = time.monotonic()
    compiled = setup.compile_steps(config, mesh, RunDirectory(flags.workdir), console)
    estimate.compile_s = time.monotonic() - began
    console.line("memory", describe.describe_memory(compiled))
    # Simulated devices show how a run is sharded over others, not how it runs here.
    measure_memory(estimate, compiled, here=not flags.sim_devices)
    if not flags.sim_devices:
        measure_time(estimate, config, compiled, console)
    for label, text in estimate.words(config.steps):
        console.line(label, text)
    console.line("done", f"--dry_run: nothing was trained, nothing written to {flags.workdir}")


if __name__ == "__main__":
    exit_process(main())
