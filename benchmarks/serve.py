"""What the server adds to the engine, how many clients it serves, and whether it lasts.

    python -m benchmarks.serve
    python -m benchmarks.serve --soak=2000

One client and sixteen, of the server and of the engine alone, take turns. The model has random
weights; the server is `bitttt serve` in a process of its own, the clients are in another.
"""

from __future__ import annotations

import contextlib
import dataclasses
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import tyro

from benchmarks import measure
from benchmarks.records import open_record, write_record
from benchmarks.turns import Case, take_turns
from bitttt_jax.errors import ConfigError, run_main

_COUNTS = (1, 16)
# Presets and mixers: small ones, of which a step takes the host as long as the device, and one
# whose steps wait for memory, so that rows share what they wait for.
_MODELS = (("quickstart", "ttt_linear"), ("quickstart", "attention"), ("bitnet_2b4t", "attention"))
# What is kept for other prompts is full soon, so that growth is a leak.
_SOAK_FLAGS = ("--reuse=16",)
_NAMES = ("first_s", "token_s", "tokens_per_s")


@dataclasses.dataclass(frozen=True)
class Flags:
    """Measure the server; results go to benchmarks/results/serve-MACHINE.json."""

    rounds: int = 2
    """Measurements of each case, with those that are in the record."""
    seconds: float = 4.0
    """Length of each."""
    soak: int = 0
    """Ask so many requests of all kinds instead, and add what came of them."""
    output: str = ""
    """The record; by default named by the machine."""
    force: bool = False
    """Begin the record anew."""


def main(argv: Sequence[str]) -> int:
    """Runs the benchmark; returns the exit code."""
    return run_main(_main, argv)


def _main(argv: Sequence[str]) -> int:
    flags = tyro.cli(
        Flags, args=list(argv), prog="python -m benchmarks.serve", use_underscores=True
    )
    observed = measure.observe()
    name = f"serve-{measure.label(observed['machine'])}.json"
    path = Path(flags.output or measure.ROOT / "benchmarks" / "results" / name)
    settings = {"seconds": flags.seconds}
    record = open_record(path, "serve", observed, settings, force=flags.force)
    with contextlib.ExitStack() as stack:
        scratch = stack.enter_context(tempfile.TemporaryDirectory(prefix="bitttt-serve-"))
        cases: dict[str, Case] = {}
        for preset, mixer in _MODELS:
            folder = str(Path(scratch) / f"{preset}-{mixer}")
            measure.run_child("benchmarks.serve_case", ["model", preset, mixer, folder])
            url, pid = stack.enter_context(_server(folder, *(_SOAK_FLAGS if flags.soak else ())))
            if flags.soak:
                args = [url, str(pid), str(flags.soak)]
                found = measure.run_child("benchmarks.serve_soak", args)
                record["soak"] = {"flags": list(_SOAK_FLAGS), **found}
                write_record(path, record)
                print(record["soak"])
                return 0
            cases |= _cases(preset, mixer, folder, url, flags.seconds)
        done = take_turns(path, record, cases, flags.rounds, observed, _summary, _words)
    if done:
        record["compared"] = compared(record)
        write_record(path, record)
        print(record["compared"])
    return int(not done)


@contextlib.contextmanager
def _server(folder: str, *flags: str) -> Iterator[tuple[str, int]]:
    """A server of a model: its address and process."""
    command = [sys.executable, "-m", "bitttt_jax", "serve", f"--model={folder}", "--port=0", *flags]
    process = subprocess.Popen(command, cwd=measure.ROOT, stderr=subprocess.PIPE, text=True)
    assert process.stderr
    try:
        lines = []
        for line in process.stderr:
            lines.append(line)
            if line.startswith("ready"):
                break
        else:
            raise ConfigError("the server doesn't start", "".join(lines))
        yield lines[0].split()[0].removesuffix("/v1"), process.pid
    finally:
        process.terminate()
        process.communicate()


def _cases(preset: str, mixer: str, folder: str, url: str, seconds: float) -> dict[str, Case]:
    def case(kind: str, place: str, count: int) -> Case:
        args = [kind, place, str(count), str(seconds)]
        return Case(
            {"preset": preset, "mixer": mixer, "measures": kind, "at_once": count},
            lambda: measure.run_child("benchmarks.serve_case", args),
        )

    return {
        f"{preset}-{mixer}-{kind}-{count}": case(kind, place, count)
        for count in _COUNTS
        for kind, place in (("engine", folder), ("clients", url))
    }


def _summary(entry: dict[str, Any]) -> dict[str, Any]:
    return {name: measure.spread([run[name] for run in entry["runs"]]) for name in _NAMES}


def _words(summary: dict[str, Any]) -> str:
    first, token, rate = (summary[name]["median"] for name in _NAMES)
    return f"first {1e3 * first:.1f} ms, later {1e3 * token:.3f} ms, {rate:,.0f} tokens/s"


def compared(record: dict[str, Any]) -> dict[str, dict[str, float]]:
    """What the record is for: the server beside the engine, and many clients beside one."""
    one, many = _COUNTS

    def of(model: str) -> dict[str, float]:
        cases = record["cases"]
        median = lambda kind, count, name: cases[f"{model}-{kind}-{count}"]["summary"][name][
            "median"
        ]
        added = lambda name, count: median("clients", count, name) - median("engine", count, name)
        rate = lambda kind, count: median(kind, count, "tokens_per_s")
        found = {
            "added_token_ms": 1e3 * added("token_s", one),
            "added_token_ms_of_16": 1e3 * added("token_s", many),
            "added_first_ms": 1e3 * added("first_s", one),
            "clients_16_over_1": rate("clients", many) / rate("clients", one),
            "engine_16_over_1": rate("engine", many) / rate("engine", one),
            "server_over_engine_of_16": rate("clients", many) / rate("engine", many),
        }
        return {name: measure.rounded(value, 3) for name, value in found.items()}

    return {f"{preset}-{mixer}": of(f"{preset}-{mixer}") for preset, mixer in _MODELS}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
