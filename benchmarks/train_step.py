"""Training throughput: tokens a second, compile time and memory of the real train step.

    python -m benchmarks.train_step                       everything, 1 to 2 hours on two cores
    python -m benchmarks.train_step --only='attention-*T512-b4,*primal*' --rounds=1
    python -m benchmarks.train_step --list

Every measurement is a process of its own without a compile cache. Cases take turns (A B C A B C),
so that a drift of the machine hits all of them, and a fixed matrix product is timed between any
two. The record is written after every measurement: the same command goes on where it stopped.
"""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tyro

from benchmarks import measure, turns
from benchmarks.records import open_record
from benchmarks.train_cases import FULL, TINY, Case, all_cases
from bitttt_jax.errors import run_main

_SLOW_STEPS = 2


@dataclasses.dataclass(frozen=True)
class Flags:
    """Measure training steps; results go to benchmarks/results/train_step-MACHINE.json."""

    only: str = ""
    """Names of cases, with wildcards, separated by commas; all by default."""
    rounds: int = 3
    """Measurements of each case, those in the record included."""
    seconds: float = 10.0
    """Least time of the timed steps in each measurement."""
    steps: int = 8
    """Least number of them (2 in cases that are slow by nature)."""
    peer_python: str = ""
    """Python with PyTorch; by default this one, if it has it."""
    output: str = ""
    """The record; by default named by the machine."""
    force: bool = False
    """Begin the record anew."""
    tiny: bool = False
    """Toy sizes, to see that the script works; the numbers mean nothing."""
    list: bool = False
    """Print the names of the cases and stop."""


def main(argv: Sequence[str]) -> int:
    """Runs the benchmark; returns the exit code."""
    return run_main(_main, argv)


def _main(argv: Sequence[str]) -> int:
    flags = tyro.cli(
        Flags, args=list(argv), prog="python -m benchmarks.train_step", use_underscores=True
    )
    peer = measure.find_peer(flags.peer_python, ["torch"])
    size = TINY if flags.tiny else FULL
    cases = turns.chosen(all_cases(size, with_torch=peer is not None), flags.only)
    if flags.list:
        print("\n".join(cases))
        return 0
    observed = measure.observe()
    path = Path(flags.output or _default_path(observed["machine"]))
    settings = {"sizes": dataclasses.asdict(size)}
    record = open_record(path, "train_step", observed, settings, force=flags.force)

    def turn(case: Case) -> turns.Case:
        python = peer if case.peer and peer else sys.executable
        return turns.Case(dataclasses.asdict(case), lambda: _measure(case, flags, python))

    prepared = {name: turn(case) for name, case in cases.items()}
    succeeded = turns.take_turns(
        path, record, prepared, flags.rounds, observed, _summary, _in_words
    )
    return 0 if succeeded else 1


def _default_path(machine: dict[str, Any]) -> Path:
    return measure.ROOT / "benchmarks" / "results" / f"train_step-{measure.label(machine)}.json"


def _measure(case: Case, flags: Flags, python: str) -> dict[str, Any]:
    steps = min(_SLOW_STEPS, flags.steps) if case.is_slow else flags.steps
    env = {key: value for key, value in os.environ.items() if key != "JAX_COMPILATION_CACHE_DIR"}
    args = [case.name, str(flags.seconds), str(steps)] + ["--tiny"] * flags.tiny
    return measure.run_child("benchmarks.train_case", args, env, python)


def _summary(entry: dict[str, Any]) -> dict[str, Any]:
    runs = entry["runs"]
    steps = [step for run in runs for step in run["step_s"]]
    tokens = runs[0]["tokens"]
    compiles = [run["lower_and_compile_s"]["train_step"] for run in runs if not entry["peer"]]
    return {
        "step_s": measure.spread(steps),
        "tokens_per_s": measure.spread([tokens / step for step in steps]),
        **({"lower_and_compile_s": measure.spread(compiles)} if compiles else {}),
        "peak_rss_mib": max(run["peak_rss_mib"] for run in runs),
    }


def _in_words(summary: dict[str, Any]) -> str:
    rate = summary["tokens_per_s"]
    compile_s = summary.get("lower_and_compile_s", {}).get("median", 0.0)
    return (
        f"{rate['median']:,.0f} tokens/s ({rate['q25']:,.0f} to {rate['q75']:,.0f})"
        f"  step {1e3 * summary['step_s']['median']:.1f} ms  compile {compile_s:.1f} s"
        f"  peak {summary['peak_rss_mib']:,.0f} MiB"
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
