"""What the studies share: training runs as child processes, and what their files say.

A study is a set of ordinary runs. It can be stopped at any time, and goes on when it is started
again: finished runs are left alone, an unfinished one resumes from its checkpoint.
"""

from __future__ import annotations

import itertools
import json
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
    evaluations = [row for row in rows if "eval/loss" in row]
    intervals = _intervals(rows, [e["step"] for e in events if e["kind"] == "resume"])
    seconds = list(itertools.accumulate(step_s * steps for step_s, steps, _ in intervals))
    tokens = [row["perf/tokens_per_s"] * row["perf/step_s"] for *_, row in intervals]
    last = intervals[-1][2]
    return {
        "steps": last["step"],
        "tokens": round(sum(t * n for t, (_, n, _) in zip(tokens, intervals, strict=True))),
        "training_s": round(seconds[-1], 1),
        "validation_s": round(sum(e["seconds"] for e in events if e["kind"] == "eval"), 1),
        "compile_s": round(run_times.compile_seconds(run), 1),
        "step_s": measure.spread([step_s for step_s, _, _ in intervals]),
        "tokens_per_s": measure.spread(
            [t / step_s for t, (step_s, _, _) in zip(tokens, intervals, strict=True)]
        ),
        "skipped_updates": int(last["train/skipped"]),
        "peak_rss_mib": round(1024 * last["mem/host_peak_gib"], 1),
        "training": {
            "step": [row["step"] for *_, row in intervals],
            "seconds": [round(s, 2) for s in seconds],
            "loss": [measure.rounded(row["train/loss"], 5) for *_, row in intervals],
        },
        "validation": {
            name: [row[key] for row in evaluations]
            for name, key in (
                ("step", "step"),
                ("loss", "eval/loss"),
                ("bits_per_byte", "eval/bpb"),
            )
        },
    }


def _intervals(
    rows: Sequence[dict[str, Any]], resumed: Sequence[int]
) -> list[tuple[float, int, dict[str, Any]]]:
    """Seconds a step, number of steps, and row of metrics for each interval between such rows.

    The interval after a start also holds the beginning of the reading threads and of the loop:
    what its steps took is taken from the others.
    """
    rows = [row for row in rows if "perf/step_s" in row]
    ends = [0, *(row["step"] for row in rows)]
    pairs = list(itertools.pairwise(ends))
    is_first = [any(a <= start < b for start in (0, *resumed)) for a, b in pairs]
    usual = [row["perf/step_s"] for row, first in zip(rows, is_first, strict=True) if not first]
    return [
        (statistics.median(usual) if first and usual else row["perf/step_s"], b - a, row)
        for row, first, (a, b) in zip(rows, is_first, pairs, strict=True)
    ]


def mean_and_range(values: Sequence[float]) -> str:
    """Such as `1.234 (1.230 to 1.240)`."""
    return f"{statistics.mean(values):.4f} ({min(values):.4f} to {max(values):.4f})"
