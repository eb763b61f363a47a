"""`bitttt convert`: a model into a folder or file for inference, here or in other programs."""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

import tyro

from bitttt_jax.commands.progress import report, show_progress
from bitttt_jax.errors import ConfigError, run_main

if TYPE_CHECKING:
    from bitttt_jax.data.build import Progress
    from bitttt_jax.inference.model import Model
    from bitttt_jax.interop.gguf_export import Kind

HuggingFace = Literal["hf", "hf-packed"]
GGUF = Literal["gguf-f16", "gguf-tq1_0", "gguf-tq2_0", "gguf-i2_s"]


@dataclasses.dataclass(frozen=True)
class Flags:
    """Convert a model: for this program, packed, or for others, read back and compared.

    bitttt convert runs/quickstart quickstart-packed

    bitttt convert runs/mine mine.gguf --to=gguf-tq2_0

    bitttt generate --model=quickstart-packed --prompt="def "
    """

    source: Annotated[str, tyro.conf.Positional]
    """Run directory, whose newest checkpoint is used; packed model; Hugging Face folder, or the
    name of one on the Hub; or GGUF file."""
    destination: Annotated[str, tyro.conf.Positional]
    """Folder, or for GGUF file, to make."""
    to: Literal["packed"] | HuggingFace | GGUF = "packed"
    """What to make: `packed`, a folder that the other commands take as --model; a Hugging Face
    folder, `hf` with floats from which ternary weights are made at loading, or `hf-packed` with 2
    bits; or a GGUF file in whose type ternary weights are, all else in float16."""
    layout: Literal["i2_s", "rows4", "base3"] = "i2_s"
    """With --to=packed: how ternary weights lie in the file: `i2_s` (2 bits, read by the CPU
    kernels where it lies), `rows4` (2 bits, for TPUs), `base3` (1.6 bits, unpacked when loaded)."""
    table: Literal["exact", "int8", "int4", "int4x2"] = "exact"
    """With --to=packed: embedding and output head `exact`, in the type they are computed in; `int8`
    rows; `int4` in groups of 32; or `int4x2`, as large and as exact as int8, of which decoding
    reads half. Unless exact, the loss of the held-out text is measured before and after."""
    step: int | None = None
    """Training step of a run's checkpoint; the newest one by default."""
    i2_s_layout: Literal["x86", "arm"] = "x86"
    """Order of the codes in the I2_S tensors of a GGUF file that is read."""
    revision: str = ""
    """Branch, tag or commit of a model on the Hub."""


def main(argv: Sequence[str]) -> int:
    """Runs the command; returns its exit code."""
    return run_main(_main, argv)


def _main(argv: Sequence[str]) -> None:
    flags = tyro.cli(Flags, args=list(argv), prog="bitttt convert", use_underscores=True)
    destination = Path(flags.destination)
    if destination.exists():
        raise ConfigError(f"{destination} is there already", fix="another name, or removing it")
    for name in ("layout", "table"):
        if flags.to != "packed" and getattr(flags, name) != getattr(Flags, name):
            raise ConfigError(
                f"--{name}={getattr(flags, name)} isn't known with --to={flags.to}",
                "it says how a packed model is stored",
            )
    started = time.perf_counter()
    from bitttt_jax.distributed.processes import use_compile_cache
    from bitttt_jax.inference.load import load

    use_compile_cache()
    with show_progress() as progress:
        progress("load", 0, 1)
        model = load(
            flags.source,
            step=flags.step,
            revision=flags.revision or None,
            i2_s_layout=flags.i2_s_layout,
        )
        progress("load", 1, 1)
        if flags.to == "packed":
            result = _pack(flags, destination, model, progress)
        elif flags.to in get_args(HuggingFace):
            result = _to_hugging_face(flags, destination, model, progress)
        else:
            result = _to_gguf(flags, destination, model, progress)
    report(result)
    print(f"{destination}  {model.description}, {time.perf_counter() - started:.1f} s")


def _pack(flags: Flags, folder: Path, model: Model, progress: Progress) -> str:
    from bitttt_jax.inference import packed_model
    from bitttt_jax.models import packed

    packed.check_packable(model.config)
    progress("pack", 0, 1)
    params = packed.pack_params(model.config, model.params, flags.layout, flags.table)
    sizes = packed.byte_counts(params)
    packed_model.save(
        folder,
        model.run,
        params,
        model.tokenizer,
        step=model.step,
        layout=flags.layout,
        table=flags.table,
        context=model.context,
        chat_template=model.chat_template,
        card=_card(flags, model, sizes),
    )
    progress("pack", 1, 1)
    result = _sizes(sizes, sum(packed.byte_counts(model.params).values()))
    return (
        result if flags.table == "exact" else f"{result}\n{_effect(flags, model, params, progress)}"
    )


def _to_hugging_face(flags: Flags, folder: Path, model: Model, progress: Progress) -> str:
    from bitttt_jax.interop import huggingface_export
    from bitttt_jax.interop.foreign import ForeignModel

    whole = ForeignModel(
        model.config,
        model.params,
        model.tokenizer,
        model.description,
        model.context,
        model.chat_template,
    )
    form: Any = flags.to
    made = huggingface_export.export(folder, whole, form, progress=progress)
    lines = [f"{name:32}{size:14,} bytes" for name, size in made.files.items()]
    lines += [
        f"{'total':32}{sum(made.files.values()):14,} bytes",
        f"read back: logits differ by {made.difference:.2g} of the largest at most",
    ]
    return "\n".join(lines)


def _to_gguf(flags: Flags, path: Path, model: Model, progress: Progress) -> str:
    from bitttt_jax.interop import gguf_export

    kind: Kind = flags.to  # type: ignore[assignment]
    path.parent.mkdir(parents=True, exist_ok=True)
    made = gguf_export.write(
        path,
        model.config,
        model.params,
        model.tokenizer,
        kind,
        name=path.stem,
        context=model.context or model.run.data.seq_len,
        chat_template=model.chat_template,
        progress=lambda done, total: progress("write tensors", done, total),
    )
    return (
        f"architecture {made.architecture}, runs in {made.runs_in}\n"
        f"{made.nbytes:,} bytes\n"
        f"read back: logits differ by {made.difference:.2g} of their spread (root mean square)"
    )


def _effect(flags: Flags, model: Model, params: Any, progress: Progress) -> str:
    """What packing does to the loss of the text that the run held out."""
    from bitttt_jax.data.manifest import MANIFEST_FILE, Manifest
    from bitttt_jax.training.evaluate import measure
    from bitttt_jax.training.setup import open_split

    folder = Path(flags.source) / "data"
    if not (folder / MANIFEST_FILE).is_file() or not Manifest.load(folder).split("validation"):
        return "(its effect isn't measured: there is no held-out text of a run)"
    splits = [open_split(model.run, folder, "validation")]
    before, after = (
        measure(model.run, p, splits, functools.partial(progress, activity))
        for activity, p in (("evaluate", model.params), ("evaluate packed", params))
    )
    return (
        f"held-out loss      {before.loss:.4f} before, {after.loss:.4f} packed "
        f"({after.loss - before.loss:+.4f}, standard error of either {before.standard_error:.4f})\n"
        f"perplexity         {before.perplexity:.2f} before, {after.perplexity:.2f} packed"
    )


def _sizes(sizes: dict[str, int], before: int) -> str:
    total = sum(sizes.values())
    lines = [
        f"ternary weights    {sizes['ternary']:14,} bytes",
        f"embedding and head {sizes['tables']:14,} bytes",
        f"everything else    {sizes['other']:14,} bytes",
        f"total              {total:14,} bytes, {before / total:.1f} times less than before",
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
| from | {model.description} |
| layout of the ternary weights | {flags.layout} |
| bytes: ternary weights | {sizes["ternary"]:,} |
| bytes: embedding and output head | {sizes["tables"]:,} |
| bytes: everything else | {sizes["other"]:,} |

    bitttt generate --model={Path(flags.destination).name} --prompt="..."
"""
