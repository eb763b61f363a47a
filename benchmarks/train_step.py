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
import fnmatch
import importlib.util
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tyro

from benchmarks import measure
from benchmarks.records import open_record, write_record
from benchmarks.train_cases import FULL, TINY, Case, all_cases
from bitttt_jax.errors import ConfigError, run_main

_SLOW_STEPS = 2
# A machine below this share of its usual calibration was busy with something else.
DISTURBED = 0.9


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
    cases = _chosen(flags)
    if flags.list:
        print("\n".join(cases))
        return 0
    observed = measure.observe()
    path = Path(flags.output or _default_path(observed["machine"]))
    settings = {"sizes": dataclasses.asdict(TINY if flags.tiny else FULL)}
    record = open_record(path, "train_step", observed, settings, force=flags.force)
    record.setdefault("cases", {})
    failed = 0
    for turn in range(flags.rounds):
        for index, case in enumerate(cases.values(), start=1):
            entry = record["cases"].setdefault(case.name, {**dataclasses.asdict(case), "runs": []})
            if len(entry["runs"]) > turn:
                continue
            print(f"round {turn + 1}/{flags.rounds}  {index}/{len(cases)}  ", end="", flush=True)
            before, result = observed, _measure(case, flags)
            observed = measure.observe()
            if isinstance(result, str):
                failed += 1
                entry["error"] = result
                print(f"{case.name}  FAILED: {result}")
            else:
                entry.pop("error", None)
                entry["runs"].append(result | _conditions(before, observed))
                _summarise(record["cases"])
                print(_line(case, entry))
            write_record(path, record)
    print(f"{path}: {sum(len(e['runs']) for e in record['cases'].values())} measurements")
    return 1 if failed else 0


def _chosen(flags: Flags) -> dict[str, Case]:
    with_torch = importlib.util.find_spec("torch") is not None
    cases = all_cases(TINY if flags.tiny else FULL, with_torch)
    if not with_torch and not flags.list:
        print("torch is not installed: the peer is left out")
    patterns = flags.only.split(",") if flags.only else ["*"]
    chosen = {
        name: case
        for name, case in cases.items()
        if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)
    }
    if not chosen:
        raise ConfigError(
            f"--only={flags.only} matches no case", fix="--list, which prints their names"
        )
    return chosen


def _default_path(machine: dict[str, Any]) -> Path:
    return measure.ROOT / "benchmarks" / "results" / f"train_step-{measure.label(machine)}.json"


def _measure(case: Case, flags: Flags) -> dict[str, Any] | str:
    """One measurement, or why there is none."""
    steps = min(_SLOW_STEPS, flags.steps) if case.is_slow else flags.steps
    env = {key: value for key, value in os.environ.items() if key != "JAX_COMPILATION_CACHE_DIR"}
    args = [case.name, str(flags.seconds), str(steps)] + ["--tiny"] * flags.tiny
    try:
        return measure.run_child("benchmarks.train_case", args, env)
    except measure.ChildFailed as error:
        return str(error)


def _conditions(before: dict[str, Any], after: dict[str, Any]) -> dict[str, Any]:
    return {
        "date": measure.now(),
        "revision": measure.revision(),
        "load_before": before["load"][0],
        "calibration_gflops": [before["calibration_gflops"], after["calibration_gflops"]],
    }


def _summarise(cases: dict[str, Any]) -> None:
    """Brings the summaries of all cases up to date: the usual calibration changes with each."""
    usual = {
        dtype: measure.spread([c[dtype] for c in _calibrations(cases)])["median"]
        for dtype in _calibrations(cases)[0]
    }
    for entry in cases.values():
        if not entry["runs"]:
            continue
        runs = entry["runs"]
        steps = [step for run in runs for step in run["step_s"]]
        tokens = runs[0]["tokens"]
        compiles = [run["lower_and_compile_s"]["train_step"] for run in runs if not entry["peer"]]
        entry["summary"] = {
            "step_s": measure.spread(steps),
            "tokens_per_s": measure.spread([tokens / step for step in steps]),
            **({"lower_and_compile_s": measure.spread(compiles)} if compiles else {}),
            "peak_rss_mib": max(run["peak_rss_mib"] for run in runs),
            "lowest_calibration": min(
                round(calibration[dtype] / usual[dtype], 3)
                for run in runs
                for calibration in run["calibration_gflops"]
                for dtype in usual
            ),
        }


def _calibrations(cases: dict[str, Any]) -> list[dict[str, float]]:
    return [c for e in cases.values() for run in e["runs"] for c in run["calibration_gflops"]]


def _line(case: Case, entry: dict[str, Any]) -> str:
    summary = entry["summary"]
    rate = summary["tokens_per_s"]
    compile_s = summary.get("lower_and_compile_s", {}).get("median", 0.0)
    busy = "  (machine was busy)" if summary["lowest_calibration"] < DISTURBED else ""
    return (
        f"{case.name}  {rate['median']:,.0f} tokens/s ({rate['q25']:,.0f} to {rate['q75']:,.0f})"
        f"  step {1e3 * summary['step_s']['median']:.1f} ms  compile {compile_s:.1f} s"
        f"  peak {summary['peak_rss_mib']:,.0f} MiB{busy}"
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
