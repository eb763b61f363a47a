"""Text to tokens: ours, the bare `tokenizers` library and llama.cpp, from a GGUF file's vocabulary.

    python -m benchmarks.tokenize_text --model=FILE.gguf
    python -m benchmarks.tokenize_text --model=FILE.gguf --text=BOOK.txt --rounds=9

Needs what `make test-models` installs: the file is read with `gguf`, and llama.cpp comes with
llama-cpp-python. The three are timed in turns on one long document, on prompts of a line each, and
on loading the vocabulary. All must give the same tokens.
"""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import tyro

from benchmarks import measure
from benchmarks.records import open_record, write_record
from bitttt_jax.errors import ConfigError, run_main

_PACKAGES = ("tokenizers", "llama-cpp-python", "gguf", "numpy")
_DOCUMENT_BYTES = 1_000_000
_PROMPTS = 500

Encode = Callable[[str], Sequence[int]]


@dataclasses.dataclass(frozen=True)
class Flags:
    """Time encoding; results go to benchmarks/results/tokenize_text-MACHINE.json."""

    model: str
    """A GGUF file with a vocabulary."""
    text: str = ""
    """Text to encode; by default the repository's own Python and Markdown files."""
    rounds: int = 5
    """Times that everything is done."""
    output: str = ""
    """The record, written anew; by default named by the machine."""


def main(argv: Sequence[str]) -> int:
    """Runs the benchmark; returns the exit code."""
    return run_main(_main, argv)


def _main(argv: Sequence[str]) -> None:
    flags = tyro.cli(Flags, args=argv, prog="python -m benchmarks.tokenize_text")
    try:
        import gguf
        import llama_cpp
    except ImportError as error:
        raise ConfigError("the peers aren't installed", str(error), "make test-models") from None
    document = _text(flags.text)
    prompts = [line for line in document.splitlines() if len(line) > 40][:_PROMPTS]
    observed = measure.observe()
    name = f"tokenize_text-{measure.label(observed['machine'])}.json"
    path = Path(flags.output or measure.ROOT / "benchmarks" / "results" / name)
    settings = {
        "model": Path(flags.model).name,
        "document_bytes": len(document.encode()),
        "prompts": len(prompts),
        "packages": measure.versions(_PACKAGES),
    }
    fields = gguf.GGUFReader(flags.model).fields.items()
    metadata = {key: field.contents() for key, field in fields if key.startswith("tokenizer.")}
    loaders = _loaders(metadata, flags.model, llama_cpp)
    seconds: dict[str, dict[str, list[float]]] = {
        case: {name: [] for name in loaders} for case in ("load", "document", "prompts")
    }
    for _ in range(flags.rounds):
        _measure_round(loaders, document, prompts, seconds)
    record = open_record(path, "tokenize_text", observed, settings, force=True)
    record["seconds"] = {
        case: {name: measure.spread(values) for name, values in found.items()}
        for case, found in seconds.items()
    }
    write_record(path, record)
    print(
        json.dumps(
            {c: {n: s["median"] for n, s in f.items()} for c, f in record["seconds"].items()}
        )
    )
    print(path)


def _loaders(
    metadata: Mapping[str, Any], model: str, llama_cpp: Any
) -> dict[str, Callable[[], Encode]]:
    """What loads each of the three, and returns what encodes with it."""
    import tokenizers

    from bitttt_jax.interop.tokenizers import from_gguf

    text = from_gguf(metadata).text

    def ours() -> Encode:
        return from_gguf(metadata).encode

    def library() -> Encode:
        backend = tokenizers.Tokenizer.from_str(text)
        backend.encode_special_tokens = True
        return lambda text: backend.encode(text, add_special_tokens=False).ids

    def peer() -> Encode:
        vocabulary = llama_cpp.Llama(model, vocab_only=True, verbose=False)
        return lambda text: vocabulary.tokenize(text.encode(), add_bos=False, special=False)

    return {"ours": ours, "tokenizers": library, "llama.cpp": peer}


def _measure_round(
    loaders: Mapping[str, Callable[[], Encode]],
    document: str,
    prompts: Sequence[str],
    seconds: Mapping[str, Mapping[str, list[float]]],
) -> None:
    tokens = set()
    for name, load in loaders.items():
        start = time.perf_counter()
        encode = load()
        seconds["load"][name].append(time.perf_counter() - start)
        for prompt in prompts[:10]:  # what is set up at first use isn't counted
            encode(prompt)
        start = time.perf_counter()
        found = encode(document)
        seconds["document"][name].append(time.perf_counter() - start)
        start = time.perf_counter()
        for prompt in prompts:
            encode(prompt)
        seconds["prompts"][name].append(time.perf_counter() - start)
        tokens.add(tuple(int(id_) for id_ in found))
    if len(tokens) > 1:
        raise ConfigError("the three don't give the same tokens", "the times say nothing then")


def _text(path: str) -> str:
    if path:
        try:
            return Path(path).read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"--text={path} can't be read", str(error)) from None
    patterns = ("bitttt_jax/**/*.py", "*.md", "docs/*.md", "experiments/**/*.md")
    files = sorted(file for pattern in patterns for file in measure.ROOT.glob(pattern))
    return "".join(file.read_text("utf-8") for file in files)[:_DOCUMENT_BYTES]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
