"""Time from the command to the first training step, and to the help text.

    python -m benchmarks.startup
    python -m benchmarks.startup --config=debug --repeats=5 --config.data.seq_len=128

Starts `--config` with an empty compile cache and then with the one just filled, in turns. The
text is prepared beforehand, as in every start of a run but its first. Runs end after one step.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tyro

from benchmarks import measure, run_times
from benchmarks.records import open_record, portable, write_record
from bitttt_jax.config_loading import FLAG_PREFIX, apply_overrides, load_config
from bitttt_jax.errors import ConfigError, run_main
from bitttt_jax.runs.directory import RunDirectory

_POLL_SECONDS = 0.05
_DEADLINE_SECONDS = 1800
_ONE_STEP = [f"{FLAG_PREFIX}steps=1", f"{FLAG_PREFIX}optim.warmup_steps=1"]
_HELP = {
    "bitttt --help": ["bitttt_jax", "--help"],
    "bitttt train --help": ["bitttt_jax", "train", "--help"],
}


@dataclasses.dataclass(frozen=True)
class Flags:
    """Measure start-up; results go to benchmarks/results/startup-MACHINE.json.

    `--config.KEY=VALUE` arguments are passed on to the run.
    """

    config: str = "quickstart"
    """Preset or file of the run."""
    repeats: int = 3
    """Starts of each kind."""
    output: str = ""
    """The record, written anew; by default named by the machine."""


def main(argv: Sequence[str]) -> int:
    """Runs the benchmark; returns the exit code."""
    return run_main(_main, argv)


def _main(argv: Sequence[str]) -> None:
    overrides = [arg for arg in argv if arg.startswith(FLAG_PREFIX)]
    rest = [arg for arg in argv if not arg.startswith(FLAG_PREFIX)]
    flags = tyro.cli(Flags, args=rest, prog="python -m benchmarks.startup", use_underscores=True)
    observed = measure.observe()
    name = f"startup-{measure.label(observed['machine'])}.json"
    path = Path(flags.output or measure.ROOT / "benchmarks" / "results" / name)
    settings = {"config": flags.config, "overrides": portable(overrides)}
    record = open_record(path, "startup", observed, settings, force=True)
    record["calibration_gflops"] = [observed["calibration_gflops"]]
    record["help_s"] = {text: _time_help(args, flags.repeats) for text, args in _HELP.items()}
    with tempfile.TemporaryDirectory(prefix="bitttt-startup-") as scratch:
        record |= _time_starts(flags, overrides, Path(scratch))
    record["calibration_gflops"].append(measure.observe()["calibration_gflops"])
    write_record(path, record)
    print(path)


def _time_help(args: list[str], repeats: int) -> dict[str, float]:
    seconds = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        subprocess.run([sys.executable, "-m", *args], check=True, stdout=subprocess.DEVNULL)
        seconds.append(time.perf_counter() - start)
    found = measure.spread(seconds[1:])  # the first one reads the files from the disk
    print(f"{args}  {found['median']:.2f} s")
    return found


def _time_starts(flags: Flags, overrides: list[str], scratch: Path) -> dict[str, Any]:
    from bitttt_jax.data.prepare import prepare

    run = RunDirectory(scratch / "run")
    started = time.perf_counter()
    prepare(apply_overrides(load_config(flags.config), overrides).data, run.path / "data")
    prepared_s = time.perf_counter() - started
    command = [
        *(sys.executable, "-m", "bitttt_jax.train"),
        *(f"--config={flags.config}", f"--workdir={run.path}", *overrides, *_ONE_STEP),
    ]
    starts: dict[str, list[dict[str, float]]] = {"cold": [], "warm": []}
    for repeat in range(flags.repeats):
        cache = scratch / f"cache-{repeat}"
        for kind, found in starts.items():
            found.append(_start(command, run, cache, scratch / "output.txt"))
            print(f"{kind}  {found[-1]}")
    phases = starts["cold"][0]
    return {"prepare_s": measure.rounded(prepared_s)} | {
        kind: {phase: measure.spread([start[phase] for start in found]) for phase in phases}
        for kind, found in starts.items()
    }


def _start(command: list[str], run: RunDirectory, cache: Path, output: Path) -> dict[str, float]:
    """Starts a run, and ends it when it has written its first row."""
    for entry in run.path.iterdir():
        if entry.name != "data":
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
    env = os.environ | {"JAX_COMPILATION_CACHE_DIR": str(cache)}
    with output.open("w") as file:
        launched = time.time()
        process = subprocess.Popen(
            command, env=env, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            first_row = _first_row(run, process, output)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    phases = run_times.start_phases(run, launched, first_row)
    phases = {"total_s": first_row - launched, **phases}
    return {name: round(seconds, 3) for name, seconds in phases.items()}


def _first_row(run: RunDirectory, process: subprocess.Popen[bytes], output: Path) -> float:
    deadline = time.monotonic() + _DEADLINE_SECONDS
    while time.monotonic() < deadline:
        ended = process.poll() is not None
        rows, _ = run.read_metrics()
        if rows:
            return float(rows[0]["t"])
        if ended:
            break
        time.sleep(_POLL_SECONDS)
    tail = "\n".join(output.read_text(errors="replace").splitlines()[-10:])
    raise ConfigError("the run came to no first step", tail)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
