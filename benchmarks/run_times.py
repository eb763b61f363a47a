"""How long the parts of a run's start took, from the files that it leaves.

A run writes tokenizer.json once its libraries are loaded and its tokens are there, an event for
each function that it compiles, and rows of metrics.
"""

from __future__ import annotations

from bitttt_jax.runs.directory import RunDirectory


def compile_seconds(run: RunDirectory) -> float:
    """Seconds in which the newest start of a run traced and compiled its steps."""
    return sum(event["seconds"] for event in _newest_compilations(run).values())


def start_phases(run: RunDirectory, launched: float, first_row: float) -> dict[str, float]:
    """Seconds of the parts of a start, which add up to the time to the first row of metrics.

    Args:
      run: its newest start is looked at.
      launched: when the command was given, seconds since 1970.
      first_row: `t` of that row.
    """
    has_data = (run.path / "tokenizer.json").stat().st_mtime
    compiled = _newest_compilations(run)["train_step"]["t"]
    return {
        "import_and_open_data_s": has_data - launched,
        "compile_s": compiled - has_data,
        "first_step_s": first_row - compiled,
    }


def _newest_compilations(run: RunDirectory) -> dict[str, dict[str, float]]:
    events, _ = run.read_events()
    return {event["function"]: event for event in events if event["kind"] == "compile"}
