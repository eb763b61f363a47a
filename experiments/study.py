"""What the studies share: training runs as child processes, and what their files say.

A study is a set of ordinary runs. It can be stopped at any time, and goes on when it is started
again: finished runs are left alone, an unfinished one resumes from its checkpoint.
"""

from __future__ import annotations

import itertools
import json
import operator
import signal
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import measure, run_times
from bitttt_jax.config import DataConfig, ModelConfig, TrainConfig
from bitttt_jax.config_loading import FLAG_PREFIX, apply_overrides, difference, load_config
from bitttt_jax.data.prepare import prepare
from bitttt_jax.errors import BittttError, ExitCode
from bitttt_jax.runs.directory import RunDirectory


class RunFailed(BittttError):
    """A run that didn't come to its end."""

    kind = "run"


def split_overrides(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """Separates `--config.KEY=VALUE` arguments, which every run gets, from the study's own."""
    overrides = [arg for arg in argv if arg.startswith(FLAG_PREFIX)]
    return overrides, [arg for arg in argv if not arg.startswith(FLAG_PREFIX)]


def override(key: str, value: Any) -> str:
    """A configuration override as an argument; sequences become comma lists."""
    is_list = isinstance(value, (list, tuple))
    return f"{FLAG_PREFIX}{key}={','.join(map(str, value)) if is_list else value}"


def prepare_text(config: DataConfig, folder: Path) -> dict[str, Any]:
    """Makes the tokens that all runs of a study read; says what they are."""
    manifest = prepare(config, folder)
    return {
        "source": [source.path for source in config.sources],
        "vocabulary": manifest.vocab_size,
        "tokenizer_fingerprint": manifest.tokenizer_fingerprint[:16],
        **{
            part.split: {
                "documents": part.documents,
                "tokens": part.tokens,
                "bytes": part.text_bytes,
                "sha256": [shard.sha256[:16] for shard in part.shards],
            }
            for part in manifest.parts
        },
    }


def reading(folder: Path) -> list[str]:
    """Overrides that make a run read prepared tokens."""
    return [override("data.sources", folder.absolute())]


def train(config: Path, workdir: Path, overrides: Sequence[str]) -> RunDirectory:
    """Runs `python -m bitttt_jax.train` to its end, unless it has been there.

    Args:
      config: file with the study's base configuration.
      workdir: the run directory; what the run prints goes to output.txt in it.
      overrides: `--config.KEY=VALUE` arguments.

    Raises:
      RunFailed: it ended otherwise, or a run of another configuration has been there.
      KeyboardInterrupt: by Ctrl-C or SIGTERM; the run has saved.
    """
    try:
        workdir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunFailed(f"can't make the folder {workdir}", str(error)) from None
    run = RunDirectory(workdir)
    status = run.read_status()
    if status and status.finished:
        _check_same(run, resolve(config, overrides))
        return run
    command = [
        *(sys.executable, "-m", "bitttt_jax.train", "--console=plain"),
        *(f"--config={config}", f"--workdir={workdir}", *overrides),
    ]
    with (workdir / "output.txt").open("a") as output:
        code = _wait(
            # In a session of its own: a second Ctrl-C would make it stop without saving.
            subprocess.Popen(
                command,
                cwd=measure.ROOT,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        )
    if code != ExitCode.OK:
        tail = (workdir / "output.txt").read_text(errors="replace").splitlines()[-10:]
        raise RunFailed(f"{workdir} ended with exit code {code}", "\n  ".join(tail))
    return run


def _check_same(run: RunDirectory, config: TrainConfig) -> None:
    changes = difference(load_config(str(run.config_path)), config)
    if changes:
        raise RunFailed(
            f"{run.path} holds a finished run of another configuration",
            "\n  ".join(f"{key} was {before}, and is {now}" for key, before, now in changes),
            "another --work",
        )


def _wait(process: subprocess.Popen[bytes]) -> int:
    """Waits for a run; Ctrl-C and SIGTERM make it save and stop before they end this process."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        return process.wait()
    except KeyboardInterrupt:
        process.send_signal(signal.SIGINT)
        process.wait()
        raise
    finally:
        signal.signal(signal.SIGTERM, before)


def evaluate(run: RunDirectory, tokens: Path, seq_len: int, batch_size: int) -> dict[str, Any]:
    """What `bitttt evaluate` measures on prepared tokens, all of them, in rows of `seq_len`."""
    command = [
        *(sys.executable, "-m", "bitttt_jax", "evaluate", f"--model={run.path.absolute()}"),
        *(f"--data={tokens.absolute()}", f"--seq_len={seq_len}", f"--batch_size={batch_size}"),
        *("--no_compressors", "--format=json"),
    ]
    done = subprocess.run(command, cwd=measure.ROOT, capture_output=True, text=True)
    if done.returncode:
        raise RunFailed(f"evaluating {run.path} ended with {done.returncode}", done.stderr[-2000:])
    return json.loads(done.stdout)


def resolve(config: Path, overrides: Sequence[str]) -> TrainConfig:
    """The configuration that a run with these overrides has."""
    return apply_overrides(load_config(str(config)), overrides)


def count_parameters(model: ModelConfig) -> int:
    """All parameters of a model whose vocabulary size is known."""
    from bitttt_jax.models.counts import count

    return count(model, 1).total


def use_cpu_here() -> None:
    """Keeps this process off the accelerator, which the runs need; call it before using JAX."""
    from bitttt_jax.distributed.processes import configure

    configure("cpu")


def describe_run(run: RunDirectory) -> dict[str, Any]:
    """Curves, time and throughput of a finished run, from its files alone.

    `training_s` is the time of the steps: no start, validation or checkpoints.
    """
    rows, _ = run.read_metrics()
    events, _ = run.read_events()
    # The last one, of all the held-out text, takes the place of an earlier one of the same step.
    validation = {
        row["step"]: (row[f"{group}/loss"], row[f"{group}/bpb"])
        for group in ("eval", "final")
        for row in rows
        if f"{group}/loss" in row
    }
    rows = [row for row in rows if row.get("train/loss") is not None]
    rates = [row for row in rows if "perf/step_s" in row]
    usual = statistics.median(row["perf/step_s"] for row in rates)
    tokens = statistics.mean(row["perf/tokens_per_s"] * row["perf/step_s"] for row in rates)
    steps = [b - a for a, b in itertools.pairwise([0, *(row["step"] for row in rows)])]
    # An interval has no rates if its only step was the first of a start, which isn't timed.
    step_s = [row.get("perf/step_s", usual) for row in rows]
    seconds = list(itertools.accumulate(map(operator.mul, step_s, steps)))
    return {
        "steps": rows[-1]["step"],
        "tokens": round(tokens * rows[-1]["step"]),
        "tokens_and_padding": int(rows[-1]["train/tokens"]),
        "training_s": round(seconds[-1], 1),
        "validation_s": round(sum(e["seconds"] for e in events if e["kind"] == "eval"), 1),
        "compile_s": round(run_times.compile_seconds(run), 1),
        "step_s": measure.spread(step_s),
        "tokens_per_s": measure.spread([row["perf/tokens_per_s"] for row in rates]),
        "skipped_updates": int(rows[-1]["train/skipped"]),
        "peak_rss_mib": round(1024 * rows[-1]["mem/host_peak_gib"], 1),
        "training": {
            "step": [row["step"] for row in rows],
            "seconds": [round(s, 2) for s in seconds],
            "loss": [measure.rounded(row["train/loss"], 5) for row in rows],
        },
        "validation": {
            "step": list(validation),
            "loss": [loss for loss, _ in validation.values()],
            "bits_per_byte": [bits for _, bits in validation.values()],
        },
    }


def mean_and_range(values: Sequence[float]) -> str:
    """Such as `1.234 (1.230 to 1.240)`."""
    return f"{statistics.mean(values):.4f} ({min(values):.4f} to {max(values):.4f})"
