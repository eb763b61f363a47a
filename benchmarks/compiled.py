"""What the kernels compile to, for TPUs and GPUs that needn't be here; nothing is run.

    .venv-tpu/bin/python -m benchmarks.compiled tpu      # libtpu, by `make test-tpu`
    .venv-gpu/bin/python -m benchmarks.compiled gpu      # CUDA plugin and ptxas, by `make test-gpu`

Compiles every case for every target, each in a process of its own, and writes the counts of
machine code to the record of `results/` that the tests compare with, beside those of other
versions of the compilers.
"""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import tyro

from benchmarks import measure, turns
from benchmarks.records import read_record, write_record
from bitttt_jax.errors import run_main

TIME_LIMIT_S = 900
TOLERANCE = 0.02
"""How much larger than recorded a count may be."""
_KEPT_STDERR_LINES = 30


@dataclasses.dataclass(frozen=True)
class Compiler:
    """One that compiles for hardware that isn't here."""

    module: str
    """Compiles a case: `python -m MODULE TARGET CASE`."""
    targets: tuple[str, ...]
    packages: tuple[str, ...]
    """Those on whose versions the machine code depends."""
    counts: tuple[str, ...]
    """What mustn't grow."""


COMPILERS = {
    "tpu": Compiler(
        "benchmarks.compile_tpu", ("v5e", "v5p", "v6e", "tpu7x"), ("jax", "libtpu"), ("bundles",)
    ),
    "gpu": Compiler(
        "benchmarks.compile_gpu",
        ("sm_90", "sm_80"),
        ("jax", "jax-cuda13-plugin"),
        ("registers", "spill_bytes"),
    ),
}


class CompileFailed(Exception):
    """The compiler refused, crashed or took too long; the message has the end of its stderr."""


@dataclasses.dataclass(frozen=True)
class Flags:
    """Record what the kernels compile to in benchmarks/results/compiled-KIND.json."""

    kind: tyro.conf.Positional[Literal["tpu", "gpu"]]
    """What is compiled for."""
    only: str = ""
    """Names of cases, with wildcards, separated by commas; all by default."""


def main(argv: Sequence[str]) -> int:
    """Writes the record; returns the exit code."""
    return run_main(_main, argv)


def _main(argv: Sequence[str]) -> None:
    flags = tyro.cli(Flags, args=argv, prog="python -m benchmarks.compiled")
    kind = flags.kind
    path = record_path(kind)
    record = read_record(path) if path.exists() else {"title": f"compiled for {kind}s", "of": {}}
    results = record["of"].get(versions(kind), {}).get("compiled_for", {})
    names = turns.chosen({name: name for name in cases(kind)}, flags.only)
    for target in COMPILERS[kind].targets:
        for name in names:
            try:
                found = compile_case(kind, target, name)
            except CompileFailed as error:
                found = {"refused": str(error).split(": ")[0]}
            print(f"compiled for {target}  {name}  {json.dumps(found)}", flush=True)
            results.setdefault(target, {})[name] = found
    results = {
        target: {name: found[name] for name in cases(kind) if name in found}
        for target, found in results.items()
    }
    about = {"date": measure.now(), "revision": measure.revision()}
    record["of"][versions(kind)] = about | {"compiled_for": results}
    write_record(path, record)
    print(path)


def cases(kind: str) -> tuple[str, ...]:
    """Names of what is compiled."""
    if kind == "tpu":
        from benchmarks.compile_tpu_cases import CASES
    else:
        from benchmarks.compile_gpu_cases import CASES
    return tuple(CASES)


def compile_case(kind: str, target: str, name: str) -> dict[str, Any]:
    """Compiles a case in a process of its own, which may crash.

    Returns:
      The counts, as the module of the compiler names them.

    Raises:
      CompileFailed: it came to no end.
    """
    kept = {key: value for key, value in os.environ.items() if not key.startswith(_OWN_SETTINGS)}
    command = [sys.executable, "-m", COMPILERS[kind].module, target, name]
    try:
        done = subprocess.run(
            command,
            cwd=measure.ROOT,
            env=kept,
            capture_output=True,
            text=True,
            timeout=TIME_LIMIT_S,
        )
    except subprocess.TimeoutExpired:
        raise CompileFailed(f"{name} for {target}: no end in {TIME_LIMIT_S} s") from None
    if done.returncode:
        tail = "\n".join(done.stderr.splitlines()[-_KEPT_STDERR_LINES:])
        raise CompileFailed(f"{name} for {target} ended with {done.returncode}: {tail}")
    return json.loads(done.stdout.splitlines()[-1])


_OWN_SETTINGS = ("JAX_", "XLA_", "LIBTPU_", "TPU_")


def record_path(kind: str) -> Path:
    """The file of the counts."""
    return measure.ROOT / "benchmarks" / "results" / f"compiled-{kind}.json"


def versions(kind: str) -> str:
    """Those that decide what is compiled, such as `jax 0.12.0, libtpu 0.0.50`."""
    return ", ".join(f"{name} {metadata.version(name)}" for name in COMPILERS[kind].packages)


def recorded(kind: str, target: str, name: str) -> dict[str, Any] | None:
    """The counts of a case by these versions; None if there are none."""
    of = read_record(record_path(kind))["of"].get(versions(kind), {})
    return of.get("compiled_for", {}).get(target, {}).get(name)


def growth(kind: str, found: dict[str, Any], before: dict[str, Any]) -> list[str]:
    """Which counts are larger than recorded, beyond the tolerance."""
    return [
        f"{count}: {found[count]}, recorded {before[count]}"
        for count in COMPILERS[kind].counts
        if count in before and found[count] > before[count] * (1 + TOLERANCE)
    ]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
