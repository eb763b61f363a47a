"""Measures cases in turns, with a calibration between any two, and keeps the record.

A B C A B C: a drift of the machine hits all cases. The record is written after every measurement,
so that the same command goes on where it stopped.
"""

from __future__ import annotations

import dataclasses
import fnmatch
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from benchmarks import measure
from benchmarks.records import write_record
from bitttt_jax.errors import ConfigError

# A machine below this share of its usual calibration was busy with something else.
DISTURBED = 0.9

Chosen = TypeVar("Chosen")


@dataclasses.dataclass(frozen=True)
class Case:
    """Something to measure.

    Args:
      description: what the record says about it.
      measure: does it once; raises `measure.ChildFailed`.
    """

    description: Mapping[str, Any]
    measure: Callable[[], dict[str, Any]]


def chosen(cases: Mapping[str, Chosen], only: str) -> dict[str, Chosen]:
    """Cases whose names match.

    Args:
      cases: by name.
      only: patterns, separated by commas; all match if empty.

    Raises:
      ConfigError: none matches.
    """
    patterns = only.split(",") if only else ["*"]
    found = {
        name: case
        for name, case in cases.items()
        if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)
    }
    if not found:
        raise ConfigError(f"--only={only} matches no case", fix=f"--only={next(iter(cases))}")
    return found


def take_turns(
    path: Path,
    record: dict[str, Any],
    cases: Mapping[str, Case],
    rounds: int,
    observed: dict[str, Any],
    summarise: Callable[[dict[str, Any]], dict[str, Any]],
    describe: Callable[[dict[str, Any]], str],
) -> bool:
    """Measures what a record lacks.

    Args:
      path: of the record.
      record: what is there already; `cases` is added to.
      cases: by name.
      rounds: measurements of each, with those that are there.
      observed: what `measure.observe` returned last.
      summarise: a summary of an entry, of which there is at least one run.
      describe: that in words, for the console.

    Returns:
      Whether all measurements succeeded.
    """
    entries = record.setdefault("cases", {})
    failed = False
    for turn in range(rounds):
        for index, (name, case) in enumerate(cases.items(), start=1):
            entry = entries.setdefault(name, {**case.description, "runs": []})
            if len(entry["runs"]) > turn:
                continue
            print(f"round {turn + 1}/{rounds}  {index}/{len(cases)}  {name}  ", end="", flush=True)
            before = observed
            try:
                result = case.measure()
            except measure.ChildFailed as error:
                failed = True
                entry["error"] = str(error)
                print(f"FAILED: {error}")
            else:
                observed = measure.observe()
                entry.pop("error", None)
                entry["runs"].append(result | _conditions(before, observed))
                _summarise(entries, summarise)
                busy = entry["summary"]["lowest_calibration"] < DISTURBED
                print(describe(entry["summary"]) + ("  (machine was busy)" if busy else ""))
            write_record(path, record)
    print(f"{path}: {sum(len(e['runs']) for e in entries.values())} measurements")
    return not failed


def _conditions(before: dict[str, Any], after: dict[str, Any]) -> dict[str, Any]:
    return {
        "date": measure.now(),
        "revision": measure.revision(),
        "load_before": before["load"][0],
        "calibration_gflops": [before["calibration_gflops"], after["calibration_gflops"]],
    }


def _summarise(
    entries: dict[str, Any], summarise: Callable[[dict[str, Any]], dict[str, Any]]
) -> None:
    """Brings the summaries of all cases up to date: the usual calibration changes with each."""
    calibrations = [c for e in entries.values() for r in e["runs"] for c in r["calibration_gflops"]]
    usual = {
        dtype: measure.spread([calibration[dtype] for calibration in calibrations])["median"]
        for dtype in calibrations[0]
    }
    for entry in entries.values():
        if entry["runs"]:
            shares = [
                round(calibration[dtype] / usual[dtype], 3)
                for run in entry["runs"]
                for calibration in run["calibration_gflops"]
                for dtype in usual
            ]
            entry["summary"] = summarise(entry) | {"lowest_calibration": min(shares)}
