"""`python -m bitttt_jax.train --config=… --workdir=…`: trains a model, or resumes a run.

JAX takes a second to import: the functions here do so only when it is clear that it is needed.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from bitttt_jax.config_loading import difference, to_json, with_vocabulary
from bitttt_jax.errors import ExitCode, run_main
from bitttt_jax.train_flags import TrainFlags, parse_train_flags

if TYPE_CHECKING:
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

    processes.configure(flags.platform, flags.sim_devices)
    processes.use_compile_cache()
    processes.initialize(flags.coordinator, flags.num_processes, flags.process_id)
    first = jax.process_index() == 0
    mode = flags.console if first else "silent"
    if flags.dry_run:
        return _dry_run(flags, Console(mode=mode))
    with RunDirectory.open(flags.workdir, writer=first) as run:
        log = run.log_path if first else run.path / f"train.{jax.process_index()}.log"
        with Console(mode=mode, log_file=log) as console:
            try:
                return _train(flags, run, console, argv)
            except BaseException as error:
                failure = run.fail(error)
                console.failure(failure, run.error_path if run.error_path.exists() else None)
                return failure.exit_code


def _train(flags: TrainFlags, run: RunDirectory, console: Console, argv: Sequence[str]) -> ExitCode:
    from bitttt_jax.models.counts import count
    from bitttt_jax.runs import resume
    from bitttt_jax.runs.metrics import MetricsWriter
    from bitttt_jax.training import describe, hardware, setup
    from bitttt_jax.training.loop import Trainer

    config_json = to_json(flags.config)
    plan = resume.prepare(run, config_json, flags.resume)
    start = plan.step or 0
    run.write_command([sys.executable, "-m", "bitttt_jax.train", *argv])
    run.update(step=start, steps=flags.config.steps)
    console.banner(f"bitttt-jax  {_how(run, plan)}", [("version", describe.describe_versions())])
    if start >= flags.config.steps:
        console.line("done", f"nothing to do: step {start}/{flags.config.steps} was reached")
        run.finish("finished", ExitCode.OK)
        return ExitCode.OK
    for key, before, now in difference(flags.preset, flags.config):
        console.line("config", f"{key} = {now}  ({flags.spec}: {before})")

    run.update(state="compiling")
    data = setup.open_data(flags.config, run, console)
    config = with_vocabulary(flags.config, data.tokenizer.vocab_size)
    counts = count(config.model, config.data.seq_len)
    console.line("model", describe.describe_model(config, counts))
    console.line("data", describe.describe_data(config.data, data))
    console.line("optim", describe.describe_schedule(config))
    compiled = setup.compile_steps(config, console)
    console.line("log", f"tensorboard --logdir={run.tensorboard_path}   {run.metrics_path}")
    with (
        setup.open_checkpoints(config, run, config_json) as checkpoints,
        MetricsWriter(run, tensorboard=config.log.tensorboard, resumed_step=plan.step) as metrics,
    ):
        trainer = Trainer(
            config=config,
            run=run,
            console=console,
            metrics=metrics,
            checkpoints=checkpoints,
            data=data,
            compiled=compiled,
            counts=counts,
            peak_flops=hardware.measure_peak(config.model.compute_dtype),
            sample=functools.partial(_continue_prompt, config, data.tokenizer),
        )
        return trainer.fit(setup.restore_or_init(config, compiled, checkpoints, plan.step), start)


def _how(run: RunDirectory, plan: ResumePlan) -> str:
    if plan.step is not None:
        return f"RESUMING {run.path} from step {plan.step}"
    moved = f"  (earlier files moved to {plan.moved_to})" if plan.moved_to else ""
    return f"NEW RUN {run.path}{moved}   (Ctrl-C saves and stops)"


def _continue_prompt(config, tokenizer, params) -> str:
    from bitttt_jax.inference.generate import generate
    from bitttt_jax.inference.prompt import encode_prompt
    from bitttt_jax.inference.sampling import SamplingConfig

    ids = generate(
        config.model,
        params,
        encode_prompt(tokenizer, config.eval.sample_prompt),
        config.eval.sample_tokens,
        sampling=SamplingConfig(temperature=0.8, top_p=0.95),
        seed=config.seed,
        stop_ids=(tokenizer.eos_id,),
        num_tokens=tokenizer.vocab_size,
    )
    return tokenizer.decode(list(ids))


def _dry_run(flags: TrainFlags, console: Console) -> ExitCode:
    """Checks what can be checked without reading text or taking memory."""
    import jax

    from bitttt_jax.distributed import mesh as meshes
    from bitttt_jax.distributed.rules import shardings
    from bitttt_jax.models.counts import count
    from bitttt_jax.runs.console_text import format_memory
    from bitttt_jax.training import describe
    from bitttt_jax.training.step import init_state

    config = with_vocabulary(flags.config, flags.config.data.tokenizer.vocab_size)
    mesh = meshes.make_mesh(config.mesh)
    meshes.check_batch_size(config.data.batch_size, config.optim.accumulation, mesh)
    abstract = jax.eval_shape(functools.partial(init_state, config))
    local = describe.state_bytes_per_device(abstract, shardings(abstract, mesh))
    console.line("model", describe.describe_model(config, count(config.model, config.data.seq_len)))
    console.line("optim", describe.describe_schedule(config))
    console.line("mesh", describe.describe_mesh(mesh))
    console.line("memory", f"{format_memory(local)} a device for parameters and moments")
    console.line("done", "nothing was read, trained or written (--dry_run)")
    return ExitCode.OK


if __name__ == "__main__":
    sys.exit(main())
