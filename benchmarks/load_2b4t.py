"""Loading a GGUF file of the size and make of BitNet b1.58 2B4T: time, memory, and steps after it.

    python -m benchmarks.load_2b4t
    python -m benchmarks.load_2b4t --file=ggml-model-i2_s.gguf

The published file isn't needed: `bitnet_file` writes one like it, with random weights, which is in
the system's cache when it is loaded. Cases differ in what its float16 embedding becomes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import tyro

from benchmarks import bitnet_file, measure, turns
from benchmarks.records import open_record
from bitttt_jax.errors import run_main
from bitttt_jax.interop import gguf_writer

_FORMS = ("bfloat16", "int8")
_TINY = {"blocks": 1, "ranks": 300}


@dataclasses.dataclass(frozen=True)
class Flags:
    """Measure the loading of a GGUF file; results go to benchmarks/results/load-MACHINE.json."""

    only: str = ""
    """Names of cases, separated by commas: bfloat16, int8; all by default."""
    rounds: int = 3
    """Measurements of each case, those in the record included."""
    file: str = ""
    """The file; by default one is made, 1.2 GB, and removed."""
    context: int = 16
    """Tokens that are read before the steps."""
    steps: int = 32
    """Tokens that are written."""
    output: str = ""
    """The record; by default named by the machine."""
    force: bool = False
    """Begin the record anew."""
    tiny: bool = False
    """One block and few tokens, to see that the script works; the numbers mean nothing."""


def main(argv: Sequence[str]) -> int:
    """Runs the benchmark; returns the exit code."""
    return run_main(_main, argv)


def _main(argv: Sequence[str]) -> int:
    flags = tyro.cli(Flags, args=list(argv), prog="python -m benchmarks.load_2b4t")
    observed = measure.observe()
    name = f"load-{measure.label(observed['machine'])}.json"
    path = Path(flags.output or measure.ROOT / "benchmarks" / "results" / name)
    settings = {"context": flags.context, "steps": flags.steps, "synthetic": not flags.file}
    record = open_record(path, "load_2b4t", observed, settings, force=flags.force)
    with _file(flags) as file:
        cases = {form: _case(file, form, flags) for form in _FORMS}
        chosen = turns.chosen(cases, flags.only)
        succeeded = turns.take_turns(
            path, record, chosen, flags.rounds, observed, _summary, _in_words
        )
    return 0 if succeeded else 1


@contextlib.contextmanager
def _file(flags: Flags) -> Iterator[Path]:
    if flags.file:
        yield Path(flags.file)
        return
    size = _TINY if flags.tiny else {}
    with tempfile.TemporaryDirectory(prefix="bitttt-load-") as folder:
        path = Path(folder) / "bitnet.gguf"
        gguf_writer.write(path, bitnet_file.metadata(**size), bitnet_file.tensors(**size))
        yield path


def _case(file: Path, form: str, flags: Flags) -> turns.Case:
    args = [str(file), form, str(flags.context), str(flags.steps)]
    return turns.Case({"embedding": form}, lambda: measure.run_child("benchmarks.load_case", args))


def _summary(entry: dict[str, Any]) -> dict[str, Any]:
    """Medians of the rounds, and how far apart these are."""
    runs = entry["runs"]
    keys = ("load_s", "grown_bytes", "resident_bytes", "peak_resident_bytes")
    summary = {key: measure.spread([run[key] for run in runs]) for key in keys}
    summary["step_s"] = measure.spread([run["step_s"]["median"] for run in runs])
    return summary | {"file_bytes": runs[0]["file_bytes"]}


def _in_words(summary: dict[str, Any]) -> str:
    share = {
        key: summary[f"{key}_bytes"]["median"] / summary["file_bytes"]
        for key in ("grown", "resident", "peak_resident")
    }
    return (
        f"{summary['load_s']['median']:.2f} s, the process grew by {share['grown']:.2f} times the "
        f"file to {share['resident']:.2f} (peak {share['peak_resident']:.2f}), "
        f"{1 / summary['step_s']['median']:.1f} tokens/s"
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
