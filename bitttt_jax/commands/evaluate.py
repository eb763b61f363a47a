"""`bitttt evaluate`: held-out loss, beside what general compressors make of the same bytes."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import math
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import tyro

from bitttt_jax.commands.model_flags import ModelFlags, load_model
from bitttt_jax.commands.progress import show_progress
from bitttt_jax.errors import ConfigError, DataError, run_main

if TYPE_CHECKING:
    from bitttt_jax.config import TrainConfig
    from bitttt_jax.data.build import Progress
    from bitttt_jax.data.manifest import Split
    from bitttt_jax.inference.model import Model
    from bitttt_jax.training.evaluate import Evaluation


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flags(ModelFlags):
    """Measure a trained model on text: loss, perplexity, bits per byte, loss by position.

    bitttt evaluate --model=runs/quickstart

    bitttt evaluate --model=runs/quickstart --data=book.txt --seq_len=2048
    """

    data: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """File or folder of text, or tokens made by `bitttt prepare`; may be given several times.
    By default the documents that the run held out; a model that isn't a run needs it."""
    seq_len: int = 0
    """Tokens that the model reads at once; 0 for those of the training, or as many as a model
    from elsewhere was made for if these are fewer."""
    batch_size: int = 0
    """Rows at once; 0 for those of the training."""
    compressors: bool = True
    """Compress the same bytes with gzip -9 and xz -9e, to compare."""
    format: Literal["text", "json"] = "text"
    """How to print the result."""


@dataclasses.dataclass(frozen=True)
class _Text:
    """What is measured: splits of a folder of prepared tokens."""

    folder: Path
    splits: tuple[Split, ...]


def main(argv: Sequence[str]) -> int:
    """Runs the command; returns its exit code."""
    return run_main(_main, argv)


def _main(argv: Sequence[str]) -> None:
    flags = tyro.cli(Flags, args=list(argv), prog="bitttt evaluate", use_underscores=True)
    for name in ("seq_len", "batch_size"):
        if getattr(flags, name) < 0:
            raise ConfigError(f"--{name} must not be negative, got {getattr(flags, name)}")
    if "" in flags.data:
        raise ConfigError("--data= names no file or folder")
    from bitttt_jax.inference.failures import out_of_memory
    from bitttt_jax.runs.files import to_row
    from bitttt_jax.training.evaluate import measure
    from bitttt_jax.training.hardware import keep_freed_memory
    from bitttt_jax.training.setup import open_split

    keep_freed_memory()
    with out_of_memory("a smaller --batch_size or --seq_len"), show_progress() as progress:
        model = load_model(flags)
        config = _config(model, flags)
        with _open_text(model, flags, progress) as text:
            splits = [open_split(config, text.folder, split) for split in text.splits]
            evaluation = measure(
                config,
                model.params,
                splits,
                lambda done, total: progress("evaluate", done, total),
            )
            result = {
                "model": flags.model,
                "step": model.step,
                "description": model.description,
                "seq_len": config.data.seq_len,
                **_describe_text(flags, text),
                **_describe_evaluation(evaluation),
                **_compress(flags, model, text, progress),
            }
    if flags.format == "json":
        print(json.dumps(to_row(result), indent=2, allow_nan=False))
    else:
        print(_table(result))


def _config(model: Model, flags: Flags) -> TrainConfig:
    """The run's configuration with rows as the flags want them."""
    config = model.run
    mini_batch = config.model.ttt.mini_batch if config.model.uses_ttt else 1
    longest = model.context or max(flags.seq_len, config.data.seq_len)
    seq_len = flags.seq_len or min(config.data.seq_len, longest - longest % mini_batch)
    if seq_len > longest:
        raise ConfigError(
            f"--seq_len={seq_len}: the model was made for at most {longest} tokens",
            fix=f"--seq_len={longest}",
        )
    if config.model.uses_ttt and seq_len % mini_batch:
        raise ConfigError(
            f"--seq_len={seq_len} must be a multiple of {mini_batch}",
            "the model's TTT layers learn from that many tokens at once (model.ttt.mini_batch)",
            f"--seq_len={-(-seq_len // mini_batch) * mini_batch}",
        )
    batch_size = flags.batch_size or config.data.batch_size
    data = dataclasses.replace(config.data, seq_len=seq_len, batch_size=batch_size)
    # Batches aren't run in parts here, and needn't be multiples of the number of parts.
    optim = dataclasses.replace(config.optim, accumulation=1)
    return dataclasses.replace(config, data=data, optim=optim)


@contextlib.contextmanager
def _open_text(model: Model, flags: Flags, progress: Progress) -> Iterator[_Text]:
    """The held-out documents of the run, or the given ones as tokens in a temporary folder."""
    from bitttt_jax.data.manifest import SPLITS, Manifest

    if not flags.data:
        yield _held_out(Path(flags.model))
        return
    with tempfile.TemporaryDirectory(prefix="bitttt-evaluate-") as temporary:
        folder = Path(temporary) / "tokens"
        _prepare(model, flags, folder, progress)
        manifest = Manifest.load(folder)
        yield _Text(folder, tuple(split for split in SPLITS if manifest.split(split)))


def _held_out(model: Path) -> _Text:
    from bitttt_jax.data.manifest import MANIFEST_FILE, Manifest
    from bitttt_jax.runs.directory import RunDirectory

    fix = "--data=PATH with text that the model wasn't trained on"
    if not RunDirectory(model).checkpoints_path.is_dir():
        raise DataError(f"{model} isn't a run, which would have held documents out", fix=fix)
    folder = model / "data"
    if not (folder / MANIFEST_FILE).is_file():
        raise DataError(f"{folder} isn't there: the run's held-out documents are missing", fix=fix)
    if not Manifest.load(folder).split("validation"):
        raise DataError(f"{folder} holds no held-out documents", "the run trained on all", fix)
    return _Text(folder, ("validation",))


def _prepare(model: Model, flags: Flags, folder: Path, progress: Progress) -> None:
    from bitttt_jax.config import DataConfig, SourceConfig, TokenizerConfig
    from bitttt_jax.data.chat_format import CHAT_TEMPLATE_FILE
    from bitttt_jax.data.documents import UnusableDocumentError
    from bitttt_jax.data.files import MissingSourceError
    from bitttt_jax.data.manifest import MANIFEST_FILE, TOKENIZER_FILE
    from bitttt_jax.data.prepare import prepare
    from bitttt_jax.data.shards import load_tokenizer

    # Of runs and folders of this program; that of a GGUF file has none of its own.
    tokenizer = Path(flags.model) / TOKENIZER_FILE
    by_hand = f"bitttt prepare --tokenizer={tokenizer} --output=DIR" if tokenizer.is_file() else ""
    for path in flags.data:
        is_prepared = (Path(path) / MANIFEST_FILE).is_file()
        if is_prepared and load_tokenizer(path).fingerprint != model.tokenizer.fingerprint:
            raise DataError(
                f"--data={path} was prepared with another tokenizer than the model's",
                fix=by_hand and f"{by_hand} of the same text, then --data=DIR",
            )
    own = folder.with_name(TOKENIZER_FILE)
    model.tokenizer.save(own)
    template = folder.with_name(CHAT_TEMPLATE_FILE)
    if model.chat_template:
        template.write_text(model.chat_template, "utf-8")
    config = DataConfig(
        sources=tuple(SourceConfig(path=path) for path in flags.data),
        tokenizer=TokenizerConfig(kind="file", path=str(own)),
        chat_template=str(template) if model.chat_template else "",
        validation_fraction=0.0,  # all of it goes into the split `train`
    )
    try:
        prepare(config, folder, progress=progress)
    except MissingSourceError as error:
        raise DataError(error.what, error.why, "another --data") from None
    except UnusableDocumentError as error:
        how = f"{by_hand}, which can leave documents out or read other fields, then --data=DIR"
        fix = how if by_hand else "another --data"
        raise DataError(error.what, error.why, fix) from None


def _compress(flags: Flags, model: Model, text: _Text, progress: Progress) -> dict[str, object]:
    from bitttt_jax.data.shards import TokenDataset
    from bitttt_jax.inference.compressors import compressed_sizes, decoded_documents

    if not flags.compressors:
        return {"compressors": {}, "compressors_left_out": "--no_compressors"}
    datasets = [TokenDataset.open(text.folder, split) for split in text.splits]
    if any(part.predictions < part.tokens for dataset in datasets for part in dataset.parts):
        why = "of conversations only replies count, which compressors can't be told"
        return {"compressors": {}, "compressors_left_out": why}
    expected = sum(dataset.text_bytes for dataset in datasets)
    documents = (decoded_documents(dataset, model.tokenizer) for dataset in datasets)
    found, sizes = compressed_sizes(
        itertools.chain.from_iterable(documents),
        lambda done: progress("compress", min(done, expected), expected),
    )
    if found != expected:
        why = f"the tokenizer loses text: {expected} bytes came back from the tokens as {found}"
        return {"compressors": {}, "compressors_left_out": why}
    compressors = {
        name: {"bytes": size, "bits_per_byte": 8 * size / expected} for name, size in sizes.items()
    }
    return {"compressors": compressors, "compressors_left_out": ""}


def _describe_text(flags: Flags, text: _Text) -> dict[str, object]:
    from bitttt_jax.data.manifest import Manifest

    manifest = Manifest.load(text.folder)
    parts = [part for split in text.splits for part in manifest.split(split)]
    return {
        "data": list(flags.data),
        "documents": sum(part.documents for part in parts),
        "text_bytes": sum(part.predicted_bytes for part in parts),
    }


def _describe_evaluation(evaluation: Evaluation) -> dict[str, object]:
    return {
        "tokens": evaluation.tokens,
        "loss": evaluation.loss,
        "loss_error": evaluation.standard_error,
        "perplexity": evaluation.perplexity,
        "perplexity_error": evaluation.perplexity_error,
        "bits_per_byte": evaluation.bits_per_byte,
        "bits_per_byte_error": evaluation.bits_per_byte_error,
        "by_position": [
            {"from": start, "tokens": mean.tokens, "loss": mean.loss, "error": mean.standard_error}
            for start, mean in evaluation.by_position.items()
        ],
    }


def _table(result: dict[str, Any]) -> str:
    source = ", ".join(result["data"]) or "held-out documents"
    lines = [
        f"model       {result['model']}, {result['description']}",
        f"text        {source}: {result['documents']:,} documents, {result['tokens']:,} tokens, "
        f"{result['text_bytes']:,} bytes",
        "",
        "                value  std. error",
        _row("loss", result["loss"], result["loss_error"]) + "  nats a token",
        _row("perplexity", result["perplexity"], result["perplexity_error"]),
        _row("bits/byte", result["bits_per_byte"], result["bits_per_byte_error"]),
    ]
    for name, size in result["compressors"].items():
        lines.append(_row(f"  {name}", size["bits_per_byte"]))
    if result["compressors_left_out"]:
        lines.append(f"            (without gzip and xz: {result['compressors_left_out']})")
    lines += [
        "",
        f"from position    loss  std. error      tokens  in rows of {result['seq_len']:,}",
    ]
    for mean in result["by_position"]:
        row = _row(f"{mean['from']:,}", mean["loss"], mean["error"])
        lines.append(f"{row}{mean['tokens']:12,}")
    return "\n".join(lines)


def _row(label: str, value: float, error: float | None = None) -> str:
    row = f"{label:10}{_number(value):>11}"
    return row if error is None else f"{row}{_number(error):>12}"


def _number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.4f}" if value < 1000 else f"{value:.5g}"
