"""What the studio takes: its start, a page with long curves, updates, processor time, a flood.

    python -m benchmarks.studio
    python -m benchmarks.studio --rows=20000 --repeats=1 --watched_s=2 --flood_mb=5

A program that writes as a run does stands for one: ten rows of metrics and ten log lines a second
and a status every two, which is more than most trainings write. Pages are connections of their own
that read the events of that run.
"""

from __future__ import annotations

import contextlib
import dataclasses
import http.client
import itertools
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil
import tyro

from benchmarks import measure
from benchmarks.records import open_record, write_record
from bitttt_jax.config import TrainConfig
from bitttt_jax.config_loading import to_json
from bitttt_jax.errors import run_main
from bitttt_jax.runs.directory import RunDirectory

_TAGS = (
    "train/loss", "train/ppl", "train/bpb", "lr", "grad_norm", "train/skipped", "perf/step_s",
    "perf/tokens_per_s", "perf/tflops_per_device", "perf/mfu", "train/tokens",
    "mem/host_peak_gib",
)  # fmt: skip
_PAGES = 8
_ROWS_A_SECOND = 10
_DEADLINE_SECONDS = 60


@dataclasses.dataclass(frozen=True)
class Flags:
    """Measure the studio; results go to benchmarks/results/studio-MACHINE.json."""

    rows: int = 100_000
    """Rows of the long run's metrics."""
    repeats: int = 5
    """Starts of the studio, each of which opens the long run anew."""
    updates: int = 20
    """Rows whose way to the page is timed."""
    watched_s: float = 8.0
    """Seconds over which processor time is counted, for each number of pages."""
    flood_mb: int = 100
    """Size of the flood of log lines."""
    output: str = ""
    """The record, written anew; by default named by the machine."""


@dataclasses.dataclass(frozen=True)
class Studio:
    """A running studio."""

    process: psutil.Process
    url: str
    started_s: float
    """From the command to the answer to the page's first request."""

    def get(self, path: str) -> Any:
        """JSON that it answers."""
        with self._ask(path) as answer:
            return json.loads(answer.read())

    @contextlib.contextmanager
    def _ask(self, path: str) -> Iterator[http.client.HTTPResponse]:
        parts = urlsplit(self.url)
        connection = http.client.HTTPConnection(parts.netloc, timeout=_DEADLINE_SECONDS)
        token = parts.query.removeprefix("token=")
        try:
            connection.request("GET", path, headers={"authorization": f"Bearer {token}"})
            yield connection.getresponse()
        finally:
            connection.close()

    def listen(self, run: str, heard: Callable[[str, Any], None]) -> None:
        """Reads the events of a run, as a page does, until the studio ends."""
        with self._ask(f"/api/events?run={run}") as answer, contextlib.suppress(OSError):
            kind = ""
            for line in answer:
                if line.startswith(b"event: "):
                    kind = line[7:].decode().strip()
                elif line.startswith(b"data: "):
                    heard(kind, json.loads(line[6:]))


def main(argv: Sequence[str]) -> int:
    """Runs the benchmark; returns the exit code."""
    return run_main(_main, argv)


def _main(argv: Sequence[str]) -> None:
    flags = tyro.cli(
        Flags, args=list(argv), prog="python -m benchmarks.studio", use_underscores=True
    )
    observed = measure.observe()
    name = f"studio-{measure.label(observed['machine'])}.json"
    path = Path(flags.output or measure.ROOT / "benchmarks" / "results" / name)
    settings = {key: value for key, value in dataclasses.asdict(flags).items() if key != "output"}
    record = open_record(path, "studio", observed, settings, force=True)
    record["calibration_gflops"] = [observed["calibration_gflops"]]
    with tempfile.TemporaryDirectory(prefix="bitttt-studio-") as scratch:
        runs = Path(scratch) / "runs"
        record["metrics_mb"] = measure.rounded(_write_long_run(runs / "long", flags.rows) / 1e6)
        record |= _time_opening(runs, flags.repeats)
        record |= _watch(runs, flags)
    record["calibration_gflops"].append(measure.observe()["calibration_gflops"])
    write_record(path, record)
    print(json.dumps({k: v for k, v in record.items() if k.endswith(("_s", "_percent"))}, indent=1))
    print(path)


def _row(step: int, rng: random.Random) -> dict[str, float]:
    return {"t": round(time.time(), 3), "step": step, **{tag: rng.random() for tag in _TAGS}}


def _write_long_run(folder: Path, rows: int) -> int:
    """Writes a finished run; returns the size of its metrics."""
    rng = random.Random(0)
    with RunDirectory.open(folder, writer=True) as run:
        run.start()
        run.write_config(to_json(TrainConfig(name="quickstart")))
        run.update(step=rows * 10, steps=rows * 10)
        run.finish("finished", 0)
        text = "".join(json.dumps(_row(10 * n, rng)) + "\n" for n in range(1, rows + 1))
        run.metrics_path.write_text(text, encoding="utf-8")
        run.log_path.write_text("a line of the log\n" * rows, encoding="utf-8")
    return len(text)


@contextlib.contextmanager
def _studio(runs: Path) -> Iterator[Studio]:
    began = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", "bitttt_jax", "studio", f"--runs={runs}", "--port=0",
         "--no_browser"],
        stdout=subprocess.PIPE,
        text=True,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        url = process.stdout.readline().split()[-1]
        studio = Studio(psutil.Process(process.pid), url, 0.0)
        studio.get("/api/info")
        yield dataclasses.replace(studio, started_s=time.perf_counter() - began)
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(_DEADLINE_SECONDS)
        process.stdout.close()


def _time_opening(runs: Path, repeats: int) -> dict[str, Any]:
    """Times the start, and all that the page of the long run asks for, the first time and again."""
    starts, first, again = [], [], []
    for _ in range(repeats + 1):
        with _studio(runs) as studio:
            starts.append(studio.started_s)
            first.append(_open_page(studio))
            again.append(_open_page(studio))
        print(f"start {starts[-1]:.3f} s  page {first[-1]:.3f} s  again {again[-1]:.3f} s")
    # The first start reads the program's files from the disk.
    names = {"start_s": starts, "open_s": first, "open_again_s": again}
    return {name: measure.spread(seconds[1:]) for name, seconds in names.items()}


def _open_page(studio: Studio) -> float:
    began = time.perf_counter()
    studio.get("/api/runs")
    studio.get("/api/runs/long")
    studio.get("/api/runs/long/series?points=2000")
    studio.get("/api/runs/long/log?lines=500")
    studio.get("/api/runs/long/samples")
    return time.perf_counter() - began


def _watch(runs: Path, flags: Flags) -> dict[str, Any]:
    found: dict[str, Any] = {}
    with _studio(runs) as studio, _writer(runs / "live") as append:
        for pages in (0, 1, _PAGES):
            for _ in range(pages - (1 if pages == _PAGES else 0)):
                _page(studio, lambda kind, data: None)
            time.sleep(1.0)
            percent = _cpu_percent(studio.process, flags.watched_s)
            found[f"cpu_with_{pages}_pages_percent"] = measure.rounded(percent)
            print(f"{pages} pages: {percent:.2f} % of a core")
        time_update, rng, updates = _update_timer(studio, append), random.Random(2), []
        for _ in range(flags.updates):
            time.sleep(rng.uniform(0, 0.5))
            updates.append(time_update())
        found["update_s"] = measure.spread(updates)
        print(f"update {found['update_s']}")
        found |= _flood(studio, runs / "live" / "train.log", time_update, flags.flood_mb)
        found["rss_mib"] = measure.rounded(studio.process.memory_info().rss / 2**20)
    return found


def _page(studio: Studio, heard: Callable[[str, Any], None]) -> None:
    threading.Thread(target=studio.listen, args=["live", heard], daemon=True).start()


@contextlib.contextmanager
def _writer(folder: Path) -> Iterator[Callable[[int], None]]:
    """Writes as a running training does; yields what adds a row of a step at once."""
    rng, lock, ended = random.Random(1), threading.Lock(), threading.Event()
    with RunDirectory.open(folder, writer=True) as run:
        run.start()
        run.write_config(to_json(TrainConfig(name="quickstart")))

        def append(step: int) -> None:
            with lock:
                run.metric(_row(step, rng))

        def write() -> None:
            step = 0
            while not ended.wait(1 / _ROWS_A_SECOND):
                step += 1
                append(step)
                run.update(state="running", step=step, steps=10**6, eta_s=1000.0 - step)
                with run.log_path.open("a", encoding="utf-8") as log:
                    log.write(f"step={step}/1000000 loss=1.234 tok_s=41000 eta=76s\n")

        writer = threading.Thread(target=write)
        writer.start()
        try:
            yield append
        finally:
            ended.set()
            writer.join()


def _cpu_percent(process: psutil.Process, seconds: float) -> float:
    before, began = process.cpu_times(), time.perf_counter()
    time.sleep(seconds)
    after, elapsed = process.cpu_times(), time.perf_counter() - began
    return 100 * (after.user - before.user + after.system - before.system) / elapsed


def _update_timer(studio: Studio, append: Callable[[int], None]) -> Callable[[], float]:
    """Opens a page; returns what writes a row and times its way to that page."""
    arrived: dict[int, float] = {}
    steps = itertools.count(10**7)

    def heard(kind: str, data: Any) -> None:
        if kind == "metrics":
            arrived.update((row["step"], time.perf_counter()) for row in data["rows"])

    def time_update() -> float:
        step, written = next(steps), time.perf_counter()
        append(step)
        while step not in arrived and time.perf_counter() < written + _DEADLINE_SECONDS:
            time.sleep(0.001)
        return arrived[step] - written

    _page(studio, heard)
    time.sleep(1.0)
    return time_update


def _flood(
    studio: Studio, log: Path, time_update: Callable[[], float], megabytes: int
) -> dict[str, Any]:
    """Writes a flood of log lines while nine pages watch; times requests meanwhile."""
    line = b"\x1b[33mwarning\x1b[0m  " + b"the same thing once more " * 5 + b"\n"
    block = line * (10**6 // len(line))
    flooded = threading.Event()

    def pour() -> None:
        with log.open("ab", buffering=0) as file:
            for _ in range(megabytes):
                file.write(block)
                time.sleep(0.1)  # some 10 MB a second
        os.sync()
        flooded.set()

    before = studio.process.memory_info().rss
    threading.Thread(target=pour).start()
    answers, updates = [], []
    while not flooded.is_set():
        began = time.perf_counter()
        studio.get("/api/runs/live/log?lines=500")
        answers.append(time.perf_counter() - began)
        updates.append(time_update())
    grown = studio.process.memory_info().rss - before
    print(f"flood: answers in {max(answers):.3f} s, updates in {max(updates):.3f} s")
    return {
        "flood_answer_s": measure.spread(answers),
        "flood_update_s": measure.spread(updates),
        "flood_grown_mib": measure.rounded(grown / 2**20),
    }


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
