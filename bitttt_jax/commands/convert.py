"""`bitttt convert`: a training run into a folder for inference."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from bitttt_jax.commands.progress import show_progress
from bitttt_jax.errors import ConfigError, run_main

if TYPE_CHECKING:
    from bitttt_jax.inference.model import Model


@dataclasses.dataclass(frozen=True)
class Flags:
    """Convert a trained model: ternary weights packed at 2 bits, ready to run.

    bitttt convert runs/quickstart quickstart-packed

    bitttt generate --model=quickstart-packed --prompt="def "
    """

    source: Annotated[str, tyro.conf.Positional]
    """Run directory; its newest checkpoint is used."""
    destination: Annotated[str, tyro.conf.Positional]
    """Folder to make."""
    to: Literal["packed"] = "packed"
    """What to make: `packed`, a folder that the other commands take as --model."""
    layout: Literal["i2_s", "rows4", "base3"] = "i2_s"
    """How ternary weights lie in the file: `i2_s` (2 bits, read by the CPU kernels where it lies),
    `rows4` (2 bits, for TPUs), `base3` (1.6 bits, unpacked when it is loaded)."""
    table: Literal["exact", "int8", "int4", "int4x2"] = "exact"
    """Embedding and output head: `exact`, in the type they are computed in; `int8` rows; `int4` in
    groups of 32; or `int4x2`, as large and as exact as int8, of which decoding reads half. Unless
    exact, the loss of the held-out text is measured before and after."""
    step: int | None = None
    """Training step of the checkpoint; the newest one by default."""


def main(argv: Sequence[str]) -> int:
    """Runs the command; returns its exit code."""
    return run_main(_main, argv)


def _main(argv: Sequence[str]) -> None:
    flags = tyro.cli(Flags, args=list(argv), prog="bitttt convert", use_underscores=True)
    destination = Path(flags.destination)
    if destination.exists():
        raise ConfigError(f"{destination} is there already", fix="another folder, or removing it")
    started = time.perf_counter()
    from bitttt_jax.distributed.processes import use_compile_cache
    from bitttt_jax.inference import packed_model
    from bitttt_jax.inference.load import load_run
    from bitttt_jax.models import packed

    use_compile_cache()
    model = load_run(flags.source, flags.step)
    packed.check_packable(model.config)
    params = packed.pack_params(model.config, model.params, flags.layout, flags.table)
    sizes = packed.byte_counts(params)
    packed_model.save(
        destination,
        model.run,
        params,
        model.tokenizer,
        step=model.step,
        layout=flags.layout,
        table=flags.table,
        card=_card(flags, model, sizes),
    )
    latent = sum(packed.byte_counts(model.params).values())
    print(_sizes(sizes, latent))
    if flags.table != "exact":
        print(_effect(Path(flags.source), model, params))
    print(f"{destination}  step {model.step}, {time.perf_counter() - started:.1f} s")


def _effect(run: Path, model: Model, params: Any) -> str:
    """What packing does to the loss of the text that the run held out."""
    from bitttt_jax.data.manifest import MANIFEST_FILE, Manifest
    from bitttt_jax.training.evaluate import measure
    from bitttt_jax.training.setup import open_split

    folder = run / "data"
    if not (folder / MANIFEST_FILE).is_file() or not Manifest.load(folder).split("validation"):
        return "(its effect isn't measured: the run has no held-out text)"
    splits = [open_split(model.run, folder, "validation")]
    with show_progress() as progress:
        before, after = (
            measure(model.run, p, splits, lambda done, total: progress("evaluate", done, total))
            for p in (model.params, params)
        )
    return (
        f"held-out loss      {before.loss:.4f} before, {after.loss:.4f} packed "
        f"({after.loss - before.loss:+.4f}, standard error of either {before.standard_error:.4f})\n"
        f"perplexity         {before.perplexity:.2f} before, {after.perplexity:.2f} packed"
    )


def _sizes(sizes: dict[str, int], latent: int) -> str:
    total = sum(sizes.values())
    lines = [
        f"ternary weights    {sizes['ternary']:14,} bytes",
        f"embedding and head {sizes['tables']:14,} bytes",
        f"everything else    {sizes['other']:14,} bytes",
        f"total              {total:14,} bytes, {latent / total:.1f} times less than in training",
    ]
    return "\n".join(lines)


def _card(flags: Flags, model: Model, sizes: dict[str, int]) -> str:
    config = model.config
    return f"""# {Path(flags.destination).name}

A language model with ternary weights, packed by bitttt_jax for inference.

| | |
|---|---|
| mixers | {", ".join(config.mixers)} |
| blocks, width, heads | {config.num_layers}, {config.dim}, {config.num_heads} |
| vocabulary | {config.vocab_size:,} |
| training step | {model.step:,} |
| layout of the ternary weights | {flags.layout} |
| bytes: ternary weights | {sizes["ternary"]:,} |
| bytes: embedding and output head | {sizes["tables"]:,} |
| bytes: everything else | {sizes["other"]:,} |

    bitttt generate --model={Path(flags.destination).name} --prompt="..."
"""
