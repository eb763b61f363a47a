"""Trains {float, ternary} x {attention, TTT-Linear, TTT-MLP, half and half} on equal terms.

    python -m experiments.mixers_and_ternary.run
    python -m experiments.mixers_and_ternary.run --seeds=1 --only='ternary-*' --config.steps=200

Equal parameters (the MLP's width makes up for the mixer's size), equal text, equal steps. Runs go
to --work, one after the other, seed by seed; finished ones are left alone. What they wrote is
gathered in results.json, which is brought up to date after each.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tyro

from benchmarks import measure
from benchmarks.records import open_record, portable, write_record
from bitttt_jax.config import Mixer, ModelConfig
from bitttt_jax.config_loading import apply_overrides, with_vocabulary
from bitttt_jax.errors import ConfigError, run_main
from experiments import study

HERE = Path(__file__).parent
BASE = HERE / "base.py"
MIXERS: dict[str, tuple[Mixer, ...]] = {
    "attention": ("attention",),
    "ttt_linear": ("ttt_linear",),
    "ttt_mlp": ("ttt_mlp",),
    "half": ("ttt_linear", "attention"),
}
WEIGHTS = {"ternary": True, "float": False}
_WIDTH_MULTIPLE = 8
_TOLERANCE = 0.01


@dataclasses.dataclass(frozen=True)
class Flags:
    """Run the study. `--config.KEY=VALUE` arguments go to all runs, in a --work of their own."""

    seeds: int = 3
    """Runs of each kind."""
    only: str = ""
    """Kinds, such as `ternary-half`, with wildcards, separated by commas; all by default."""
    work: str = "runs/mixers_and_ternary"
    """Folder of the text and the runs."""
    output: str = ""
    """The results; by default this folder's results.json, or WORK/results.json if arguments
    changed the configuration."""
    force: bool = False
    """Begin the results anew."""


def main(argv: Sequence[str]) -> int:
    """Runs the study; returns the exit code."""
    return run_main(_main, argv)


def _main(argv: Sequence[str]) -> int:
    overrides, rest = study.split_overrides(argv)
    prog = "python -m experiments.mixers_and_ternary.run"
    flags = tyro.cli(Flags, args=rest, prog=prog, use_underscores=True)
    work = Path(flags.work).absolute()
    path = Path(flags.output) if flags.output else (work if overrides else HERE) / "results.json"
    study.use_cpu_here()
    chosen = _kinds(flags.only)
    base = study.resolve(BASE, overrides)
    text = study.prepare_text(base.data, work / "text")
    base = with_vocabulary(base, text["vocabulary"])
    kinds = {kind: _kind_overrides(kind, base.model) for kind in chosen}
    settings = {"overrides": portable(overrides), "text": text}
    observed = measure.observe()
    record = open_record(path, "mixers_and_ternary", observed, settings, force=flags.force)
    record.setdefault("runs", {})
    failed = 0
    for seed in range(flags.seeds):
        for kind, own in kinds.items():
            name = f"{kind}-seed{seed}"
            full = [*overrides, *study.reading(work / "text"), *own, study.override("seed", seed)]
            try:
                run = study.train(BASE, work / name, full)
            except study.RunFailed as error:
                failed += 1
                print(f"{name}  {error}")
                continue
            model = apply_overrides(base, own).model
            record["runs"][name] = _facts(kind, seed, model) | study.describe_run(run)
            write_record(path, record)
            print(_line(name, record["runs"][name]))
    print(_table(record["runs"]))
    print(path)
    return 1 if failed else 0


def fit_mlp_dim(model: ModelConfig, parameters: int) -> ModelConfig:
    """The model with the MLP width that brings it nearest to so many parameters.

    Raises:
      ConfigError: no width comes within a hundredth.
    """
    with_width = lambda width: dataclasses.replace(model, mlp_dim=width)
    size = lambda width: study.count_parameters(with_width(width))
    per_unit = size(2) - size(1)
    units = (parameters - size(1)) / per_unit + 1
    width = max(_WIDTH_MULTIPLE, _WIDTH_MULTIPLE * round(units / _WIDTH_MULTIPLE))
    if abs(size(width) / parameters - 1) > _TOLERANCE:
        raise ConfigError(
            f"model.mixers={','.join(model.mixers)} can't have {parameters:,} parameters",
            f"with model.mlp_dim={width} it has {size(width):,}",
            "a larger model.mlp_dim, which is that of attention",
        )
    return with_width(width)


def _kinds(only: str) -> list[str]:
    kinds = [f"{weights}-{mixer}" for mixer in MIXERS for weights in WEIGHTS]
    patterns = only.split(",") if only else ["*"]
    chosen = [k for k in kinds if any(fnmatch.fnmatchcase(k, pattern) for pattern in patterns)]
    if not chosen:
        raise ConfigError(f"--only={only} matches no kind", f"they are {', '.join(kinds)}")
    return chosen


def _kind_overrides(kind: str, base: ModelConfig) -> list[str]:
    weights, mixer = kind.split("-")
    model = fit_mlp_dim(
        dataclasses.replace(base, mixers=MIXERS[mixer]), study.count_parameters(base)
    )
    return [
        study.override("model.mixers", model.mixers),
        study.override("model.mlp_dim", model.mlp_dim),
        study.override("model.ternary.mixer", WEIGHTS[weights]),
        study.override("model.ternary.mlp", WEIGHTS[weights]),
    ]


def _facts(kind: str, seed: int, model: ModelConfig) -> dict[str, Any]:
    weights, mixer = kind.split("-")
    return {
        "weights": weights,
        "mixer": mixer,
        "seed": seed,
        "mlp_dim": model.mlp_dim,
        "parameters": study.count_parameters(model),
    }


def _line(name: str, run: dict[str, Any]) -> str:
    validation = run["validation"]
    return (
        f"{name}  {run['parameters']:,} parameters  loss {validation['loss'][-1]:.4f}  "
        f"{validation['bits_per_byte'][-1]:.4f} bits/byte  "
        f"{run['tokens_per_s']['median']:,.0f} tokens/s  {run['training_s']:.0f} s of steps"
    )


def _table(runs: dict[str, Any]) -> str:
    lines = [f"{'':20} final validation loss, bits per byte: mean over seeds (range)"]
    for kind in dict.fromkeys(f"{run['weights']}-{run['mixer']}" for run in runs.values()):
        own = [r["validation"] for r in runs.values() if f"{r['weights']}-{r['mixer']}" == kind]
        loss, bits = ([v[key][-1] for v in own] for key in ("loss", "bits_per_byte"))
        lines.append(f"{kind:20} {study.mean_and_range(loss)}  {study.mean_and_range(bits)}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
