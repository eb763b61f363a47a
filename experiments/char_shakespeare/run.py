"""Character-level Shakespeare in as many seconds of training as nanoGPT's CPU recipe takes.

    python -m experiments.char_shakespeare.run --text=tinyshakespeare.txt
    python -m experiments.char_shakespeare.run --text=... --seeds=1 --only='ternary-*' --seconds=20

The first nine tenths of the text are trained on, the last tenth is the validation text, as in
nanoGPT. A short run first measures the throughput; from it follow the steps that fill the time, so
that the cosine ends with it. Compilation isn't counted, but reported.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tyro

from benchmarks import measure
from benchmarks.records import open_record, portable, write_record
from bitttt_jax.config import Mixer, SourceConfig, TrainConfig
from bitttt_jax.config_loading import apply_overrides, with_vocabulary
from bitttt_jax.errors import ConfigError, DataError, run_main
from bitttt_jax.runs.files import write_atomically
from experiments import study

HERE = Path(__file__).parent
BASE = HERE / "base.py"
VARIANTS: dict[str, tuple[Mixer, bool]] = {
    "ternary-attention": ("attention", True),
    "ternary-ttt_linear": ("ttt_linear", True),
    "float-attention": ("attention", False),
    "float-ttt_linear": ("ttt_linear", False),
}
# Measured beside these runs: block 64, batch 12, 4 layers of 4 heads, width 128, learning rate
# 1e-3, no dropout, 2000 steps on two cores; its loss is the mean of random windows of 64.
YARDSTICK = {"name": "nanoGPT", "validation_loss": 1.886, "seconds": 70.0, "seq_len": 64}
EVALUATION_LENGTHS = (64, 256)
_EVALUATION_TOKENS = 4096
_PROBE_STEPS = 60


@dataclasses.dataclass(frozen=True)
class Flags:
    """Run the study. `--config.KEY=VALUE` arguments go to all runs, in a --work of their own."""

    text: str
    """tinyshakespeare.txt, 1,115,394 bytes; not part of this repository."""
    seconds: float = YARDSTICK["seconds"]
    """Time for the training steps of a run."""
    seeds: int = 3
    """Runs of each variant."""
    only: str = ""
    """Variants, with wildcards, separated by commas; all by default."""
    work: str = "runs/char_shakespeare"
    """Folder of the texts and the runs."""
    output: str = ""
    """The results; by default this folder's results.json, or WORK/results.json if arguments
    changed the configuration or the time."""
    force: bool = False
    """Begin the results anew."""


def main(argv: Sequence[str]) -> int:
    """Runs the study; returns the exit code."""
    return run_main(_main, argv)


def _main(argv: Sequence[str]) -> int:
    overrides, rest = study.split_overrides(argv)
    prog = "python -m experiments.char_shakespeare.run"
    flags = tyro.cli(Flags, args=rest, prog=prog, use_underscores=True)
    work = Path(flags.work).absolute()
    changed = overrides or flags.seconds != YARDSTICK["seconds"]
    path = Path(flags.output) if flags.output else (work if changed else HERE) / "results.json"
    study.use_cpu_here()
    chosen = _variants(flags.only)
    base = study.resolve(BASE, overrides)
    texts = cut_text(Path(flags.text), work, base)
    base = with_vocabulary(base, texts["training"]["vocabulary"])
    settings = {"overrides": portable(overrides), "seconds": flags.seconds, "text": texts}
    observed = measure.observe()
    record = open_record(path, "char_shakespeare", observed, settings, force=flags.force)
    record["yardstick"] = YARDSTICK
    record.setdefault("runs", {})
    overrides += study.reading(work / "training")
    failed = 0
    for seed in range(flags.seeds):
        for variant in chosen:
            name = f"{variant}-seed{seed}"
            try:
                facts = _run(work, name, [*overrides, *_variant_overrides(variant)], seed, flags)
            except study.RunFailed as error:
                failed += 1
                print(f"{name}  {error}")
                continue
            model = apply_overrides(base, _variant_overrides(variant)).model
            facts = {"parameters": study.count_parameters(model), **facts}
            record["runs"][name] = {"variant": variant, "seed": seed, **facts}
            write_record(path, record)
            print(_line(name, facts))
    print(path)
    return 1 if failed else 0


def cut_text(source: Path, work: Path, config: TrainConfig) -> dict[str, Any]:
    """Prepares the first nine tenths and the last tenth of a text as two folders of tokens.

    Raises:
      DataError: there is no such text.
    """
    try:
        text = source.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"--text={source} can't be read", str(error)) from None
    work.mkdir(parents=True, exist_ok=True)
    cut = len(text) * 9 // 10
    prepared = {}
    for name, part in (("training", text[:cut]), ("validation", text[cut:])):
        file = work / f"{name}.txt"
        if not file.exists() or file.read_text(encoding="utf-8") != part:
            write_atomically(file, part)
        data = dataclasses.replace(config.data, sources=(SourceConfig(path=str(file)),))
        prepared[name] = study.prepare_text(data, work / name) | {"source": file.name}
    return prepared


def _run(work: Path, name: str, overrides: list[str], seed: int, flags: Flags) -> dict[str, Any]:
    """Trains and evaluates one run; returns what is known of it."""
    steps = _steps_that_fill(work, name.rpartition("-seed")[0], overrides, flags.seconds)
    own = [study.override("seed", seed), study.override("steps", steps)]
    run = study.train(BASE, work / f"{name}-{flags.seconds:g}s", [*overrides, *own])
    losses = {}
    for seq_len in EVALUATION_LENGTHS:
        batch_size = _EVALUATION_TOKENS // seq_len
        found = study.evaluate(run, work / "validation", seq_len, batch_size)
        # The end of the text, one prediction, is all that tokens and characters differ by.
        losses[str(seq_len)] = {
            "nats_per_character": measure.rounded(found["loss"], 5),
            "standard_error": measure.rounded(found["loss_error"], 2),
            "predictions": found["tokens"],
        }
    facts = study.describe_run(run)
    facts.pop("validation")
    return {"validation_by_length": losses, **facts}


def _steps_that_fill(work: Path, variant: str, overrides: list[str], seconds: float) -> int:
    """Steps that take so long, from a short run of the same variant, made once."""
    short = [
        study.override("steps", _PROBE_STEPS),
        study.override("optim.warmup_steps", 1),
        study.override("log.every_steps", 10),
    ]
    probe = study.train(BASE, work / f"{variant}-probe", [*overrides, *short])
    rows, _ = probe.read_metrics()
    # The first interval has the warming-up of caches and clocks.
    step_s = statistics.median([row["perf/step_s"] for row in rows if "perf/step_s" in row][1:])
    least = study.resolve(BASE, overrides).optim.warmup_steps + 1
    return max(int(seconds / step_s), least)


def _variants(only: str) -> list[str]:
    patterns = only.split(",") if only else ["*"]
    chosen = [v for v in VARIANTS if any(fnmatch.fnmatchcase(v, pattern) for pattern in patterns)]
    if not chosen:
        raise ConfigError(f"--only={only} matches no variant", f"they are {', '.join(VARIANTS)}")
    return chosen


def _variant_overrides(variant: str) -> list[str]:
    mixer, is_ternary = VARIANTS[variant]
    return [
        study.override("model.mixers", [mixer]),
        study.override("model.ternary.mixer", is_ternary),
        study.override("model.ternary.mlp", is_ternary),
    ]


def _line(name: str, facts: dict[str, Any]) -> str:
    losses = "  ".join(
        f"{found['nats_per_character']:.4f} in rows of {seq_len}"
        for seq_len, found in facts["validation_by_length"].items()
    )
    return (
        f"{name}  {losses}  {facts['steps']} steps in {facts['training_s']:.1f} s, "
        f"compiled in {facts['compile_s']:.1f} s"
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
