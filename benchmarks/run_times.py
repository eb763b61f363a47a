"""How long the parts of a run's start took, from the times of the files that it leaves.

A run writes config.json once JAX is imported, tokenizer.json once its tokens are there, opens its
TensorBoard file once both steps are compiled, and writes a row of metrics after its first steps.
"""

from __future__ import annotations

from pathlib import Path

from bitttt_jax.runs.directory import RunDirectory


def compile_seconds(run: RunDirectory) -> float:
    """Seconds in which the newest start of a run built its model and compiled both steps."""
    return _compiled_at(run) - _data_ready_at(run)


def start_phases(run: RunDirectory, launched: float, first_row: float) -> dict[str, float]:
    """Seconds of the parts of a start, which add up to the time to the first row of metrics.

    Args:
      run: its newest start is looked at.
      launched: when the command was given, seconds since 1970.
      first_row: `t` of that row.
    """
    imported = run.config_path.stat().st_mtime
    data, compiled = _data_ready_at(run), _compiled_at(run)
    return {
        "import_s": imported - launched,
        "open_data_s": data - imported,
        "compile_s": compiled - data,
        "first_step_s": first_row - compiled,
    }


def _data_ready_at(run: RunDirectory) -> float:
    return (run.path / "tokenizer.json").stat().st_mtime


def _compiled_at(run: RunDirectory) -> float:
    newest: Path = max(run.tensorboard_path.glob("events.out.tfevents.*"))
    seconds, nanoseconds = newest.name.split(".")[3:5]
    return int(seconds) + int(nanoseconds) / 1e9
