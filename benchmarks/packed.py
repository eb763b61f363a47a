"""Packed ternary models on a CPU: prompts, steps after longer and longer contexts, and loading.

    python -m benchmarks.packed                                         ours only
    python -m benchmarks.packed --peer_python=PATH --peer_build=TEXT    beside llama.cpp
    python -m benchmarks.packed --only=ttt_linear --rounds=1

Ours is measured by `bitttt bench`, on random weights: `attention` is the 2.4 B parameters of BitNet
b1.58 2B4T, `attention_int4` and `attention_int4x2` the same with tables of which a step reads 4
bits, `batch` 8 sequences of the first at once, `llama_cpp` the same shape there
(`peers/llama_cpp.py` tells how to install it, and what differs), `ttt_linear` the 125M shape of the
TTT paper. `load` loads a packed folder of the first.
Each measurement is a process of its own; they take turns, with calibrations between them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import operator
import shlex
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import tyro

from benchmarks import measure, turns
from benchmarks.peers.llama_cpp import DIFFERENCES
from benchmarks.records import open_record, portable
from bitttt_jax.config_loading import load_config
from bitttt_jax.errors import run_main

_PEER_PACKAGES = ("llama_cpp", "gguf")
_PEER_PROMPTS = 2
BATCH = 8
"""Sequences that are run together."""


@dataclasses.dataclass(frozen=True)
class Size:
    """The models that are measured, and the lengths that are tried."""

    attention: str
    """Preset."""
    ttt_linear: str
    """Preset."""
    vocab_sizes: tuple[int, int]
    """Of either."""
    prefill: int
    """Tokens of the prompt, and of the shortest context."""
    attention_contexts: tuple[int, ...]
    """Longer ones."""
    ttt_contexts: tuple[int, ...]
    decodes: tuple[int, int]
    """Steps that are timed after each context, of either."""


FULL = Size(
    attention="bitnet_2b4t",
    ttt_linear="ttt_125m",
    vocab_sizes=(128_256, 32_000),
    prefill=512,
    attention_contexts=(1024, 2048, 4096),
    ttt_contexts=(1024, 2048, 4096, 8192, 16_384, 32_768),
    decodes=(32, 256),
)
TINY = Size("debug", "debug", (512, 512), 16, (32,), (32,), (2, 2))
"""Shows in seconds that everything but the peer works; its numbers mean nothing."""


@dataclasses.dataclass(frozen=True)
class Flags:
    """Measure packed models; results go to benchmarks/results/packed-MACHINE.json."""

    only: str = ""
    """Names of cases, with wildcards, separated by commas: attention, attention_int4,
    attention_int4x2, batch, llama_cpp, ttt_linear, load; all by default."""
    rounds: int = 3
    """Measurements of each case, those in the record included."""
    threads: int = 2
    """Of the CPU."""
    peer_python: str = ""
    """Python with llama-cpp-python and gguf; by default this one, if it has them."""
    peer_build: str = ""
    """How that was built, for the record."""
    scratch: str = ""
    """Folder for the models that are made, 1.7 GB, and kept; by default a temporary one."""
    output: str = ""
    """The record; by default named by the machine."""
    force: bool = False
    """Begin the record anew."""
    tiny: bool = False
    """Toys, and no peer, to see that the script works; the numbers mean nothing."""


def main(argv: Sequence[str]) -> int:
    """Runs the benchmark; returns the exit code."""
    return run_main(_main, argv)


def _main(argv: Sequence[str]) -> int:
    flags = tyro.cli(Flags, args=list(argv), prog="python -m benchmarks.packed")
    peer = None if flags.tiny else measure.find_peer(flags.peer_python, _PEER_PACKAGES)
    size = TINY if flags.tiny else FULL
    observed = measure.observe()
    name = f"packed-{measure.label(observed['machine'])}.json"
    path = Path(flags.output or measure.ROOT / "benchmarks" / "results" / name)
    settings = {"sizes": dataclasses.asdict(size), "threads": flags.threads}
    record = open_record(path, "packed", observed, settings, force=flags.force)
    with scratch_folder(flags.scratch) as scratch:
        cases = turns.chosen(_cases(size, flags, scratch, peer), flags.only)
        succeeded = turns.take_turns(
            path, record, cases, flags.rounds, observed, _summary, _in_words
        )
    return 0 if succeeded else 1


@contextlib.contextmanager
def scratch_folder(folder: str) -> Iterator[Path]:
    """A folder that is kept, or a temporary one without a name."""
    if folder:
        Path(folder).mkdir(parents=True, exist_ok=True)
        yield Path(folder)
    else:
        with tempfile.TemporaryDirectory(prefix="bitttt-packed-") as temporary:
            yield Path(temporary)


def _cases(size: Size, flags: Flags, scratch: Path, peer: str | None) -> dict[str, turns.Case]:
    """What is measured, by name, in the order of the turns."""
    threads, prefill = f"--threads={flags.threads}", f"--prefill={size.prefill}"

    def of_shape(preset: str, index: int, contexts: Sequence[int]) -> list[str]:
        shape = [f"--config={preset}", f"--vocab_size={size.vocab_sizes[index]}", threads, prefill]
        return [*shape, f"--decode={size.decodes[index]}", f"--context={_list(contexts)}"]

    packed, gguf = scratch / "packed", scratch / "bitnet.gguf"
    attention = of_shape(size.attention, 0, size.attention_contexts)
    cases = {
        "attention": bench([*attention, "--kernels"], scratch),
        "attention_int4": bench([*attention, "--table=int4"], scratch),
        "attention_int4x2": bench([*attention, "--table=int4x2"], scratch),
        "batch": bench([*of_shape(size.attention, 0, ()), f"--batch={BATCH}"], scratch),
    }
    if peer:
        cases["llama_cpp"] = _llama_cpp(size, flags, gguf, peer)
    cases["ttt_linear"] = bench(of_shape(size.ttt_linear, 1, size.ttt_contexts), scratch)
    load = bench([f"--model={packed}", threads, "--prefill=2", "--decode=2"], scratch)

    def make_and_load() -> dict[str, Any]:
        if not packed.exists():
            args = [str(packed), size.attention, str(size.vocab_sizes[0])]
            measure.run_child("benchmarks.random_model", args)
        return load.measure()

    cases["load"] = turns.Case(load.description, make_and_load)
    return cases


def _list(numbers: Sequence[int]) -> str:
    return ",".join(map(str, numbers))


def bench(args: list[str], scratch: Path) -> turns.Case:
    """`bitttt bench` with some flags; it leaves its numbers in `scratch`."""

    def run() -> dict[str, Any]:
        file = scratch / "bench.json"
        measure.run([sys.executable, "-m", "bitttt_jax", "bench", *args, f"--json={file}"])
        found = json.loads(file.read_text())
        return found | {"model": Path(found["model"]).name}

    return turns.Case({"command": shlex.join(["bitttt", "bench", *portable(args)])}, run)


def _llama_cpp(size: Size, flags: Flags, path: Path, python: str) -> turns.Case:
    """The same shape, prompt and contexts in llama.cpp."""
    module, model = "benchmarks.peers.llama_cpp", load_config(size.attention).model
    contexts = [size.prefill, *size.attention_contexts]
    fields = ("dim", "mlp_dim", "num_layers", "num_heads", "kv_heads", "rope_theta", "norm_eps")
    shape = {field: getattr(model, field) for field in fields}
    shape |= {"vocab_size": size.vocab_sizes[0], "context": 2 * max(contexts)}
    arguments = {"prefill": size.prefill, "contexts": contexts, "decode": size.decodes[0]}
    arguments |= {"threads": flags.threads, "repeats": _PEER_PROMPTS}

    def run() -> dict[str, Any]:
        if not path.exists():
            args = ["write", str(path), json.dumps(shape)]
            measure.run_child(module, args, python=python)
        args = ["measure", str(path), json.dumps(arguments)]
        return measure.run_child(module, args, python=python) | {"build": flags.peer_build}

    command = ["python", "-m", module, "measure", path.name, json.dumps(arguments)]
    return turns.Case({"command": shlex.join(command), "differences": DIFFERENCES}, run)


def _summary(entry: dict[str, Any]) -> dict[str, Any]:
    """Medians of the rounds, and how far apart these are."""
    runs = entry["runs"]

    def over_rounds(*path: str | int) -> dict[str, float]:
        return measure.spread([functools.reduce(operator.getitem, path, run) for run in runs])

    if "file_bytes" in (load := runs[0]["load"] or {}):
        grown = ("seconds", "resident_bytes", "peak_resident_bytes")
        spreads = {key: over_rounds("load", key) for key in grown}
        return {"load": spreads | {"file_bytes": load["file_bytes"]}}
    summary: dict[str, Any] = {"prefill_s": {}, "step_s": {}}
    for index, line in enumerate(runs[0]["runs"]):
        tokens, kind = line.get("tokens") or line["context"], line["what"]
        seconds = summary["prefill_s" if kind == "prefill" else "step_s"]
        seconds[str(tokens)] = over_rounds("runs", index, "median")
    if kernels := runs[0].get("kernels"):
        summary["kernels"] = {
            f"{kernel['inputs']}x{kernel['outputs']}": {
                unit: over_rounds("kernels", index, unit) for unit in ("gb_per_s", "gop_per_s")
            }
            for index, kernel in enumerate(kernels)
        }
    if runs[0].get("memory_gb_per_s"):
        summary["memory_gb_per_s"] = over_rounds("memory_gb_per_s")
    return summary


def _in_words(summary: dict[str, Any]) -> str:
    if load := summary.get("load"):
        share = load["resident_bytes"]["median"] / load["file_bytes"]
        return f"{load['seconds']['median']:.2f} s, {share:.2f} times the file in memory"
    prefill = [
        f"{int(tokens) / seconds['median']:,.0f} tokens/s with {int(tokens):,}"
        for tokens, seconds in summary["prefill_s"].items()
    ]
    steps = [
        f"{1e3 * seconds['median']:.2f} ms after {int(context):,}"
        for context, seconds in summary["step_s"].items()
    ]
    return "  ".join(["prompt", *prefill, "step", *steps])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
