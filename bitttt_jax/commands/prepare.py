"""`bitttt prepare`: text into a folder of token shards."""

from __future__ import annotations

import collections
import dataclasses
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import tyro

from bitttt_jax.commands.progress import report, show_progress
from bitttt_jax.config import (
    CleanConfig,
    DataConfig,
    SourceConfig,
    TokenizerConfig,
    TrainConfig,
)
from bitttt_jax.data import cleaning
from bitttt_jax.errors import ConfigError, run_main

if TYPE_CHECKING:
    from bitttt_jax.data.manifest import Manifest

_DATA = DataConfig()
_SOURCE = SourceConfig()
_OVERRIDES = "--config.data."


@dataclasses.dataclass(frozen=True)
class Flags:
    """Turn text into a folder of token shards that training reads (data.sources=DIR).

    bitttt prepare --source=books/ --output=tokens --tokenizer=bpe --vocab_size=8192

    bitttt prepare --source=a.jsonl --source=b.jsonl --field=content --output=tokens

    bitttt prepare --source=a/ --source=b/ --output=tokens --config.data.sources.1.weight=3

    bitttt prepare --verify=tokens

    What isn't a flag here is set as in training, by --config.data.KEY=VALUE; those win.
    """

    source: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """File, folder, or `python-stdlib`: text, JSON, or a Hugging Face dataset on disk."""
    output: str = ""
    """Folder to make; a finished one of the same sources and settings is left as it is."""
    tokenizer: str = "bytes"
    """`bytes`, `bpe` (trained on the sources), or a tokenizer.json."""
    vocab_size: int = TokenizerConfig.vocab_size
    """Size of a `bpe` tokenizer, special tokens included."""
    validation_fraction: float = _DATA.validation_fraction
    """Share of the documents held out, chosen by the hash of their bytes."""
    field: str = _SOURCE.field
    """Field of a JSON line or dataset row that holds the text."""
    glob: str = _SOURCE.glob
    """Files of a folder of text or JSON."""
    kind: Literal["auto", "text", "jsonl", "messages", "huggingface", "shards"] = "auto"
    """How to read the sources; `messages` are conversations."""
    chat_template: str = _DATA.chat_template
    """How conversations become text: `roles`, `chatml`, or a file of Jinja."""
    clean: bool = False
    """Normalise Unicode, line ends and spaces, drop control characters, leave out duplicates."""
    on_error: Literal["fail", "skip"] = _DATA.on_error
    """What to do with unreadable documents: stop with exit code 5, or skip and count them."""
    verify: str = ""
    """Folder made earlier: check every file's size and SHA-256, and do nothing else."""


def main(argv: Sequence[str]) -> int:
    """Runs the command; returns its exit code."""
    return run_main(_main, argv)


def _main(argv: Sequence[str]) -> None:
    overrides = [arg for arg in argv if arg.startswith(_OVERRIDES)]
    rest = [arg for arg in argv if arg not in overrides]
    flags = tyro.cli(Flags, args=rest, prog="bitttt prepare", use_underscores=True)
    started = time.monotonic()
    if flags.verify:
        if flags.source or flags.output or overrides:
            raise ConfigError("--verify goes without --source, --output and --config.data")
        from bitttt_jax.data.shards import verify

        manifest, folder = verify(flags.verify), flags.verify
        print("every file has the size and SHA-256 of the manifest")
    else:
        config = _config(flags, overrides)
        from bitttt_jax.data.prepare import prepare

        with show_progress() as progress:
            manifest, folder = prepare(config, flags.output, progress=progress), flags.output
    report(_report(manifest, folder, time.monotonic() - started))


def _config(flags: Flags, overrides: Sequence[str]) -> DataConfig:
    has_sources = any(arg.startswith(f"{_OVERRIDES}sources") for arg in overrides)
    if not (flags.source or has_sources) or not flags.output:
        raise ConfigError("--source and --output are needed", fix="bitttt prepare --help")
    paths = flags.source or (SourceConfig.path,)
    config = DataConfig(
        sources=tuple(SourceConfig(path, flags.kind, flags.glob, flags.field) for path in paths),
        tokenizer=_tokenizer_config(flags),
        validation_fraction=flags.validation_fraction,
        on_error=flags.on_error,
        chat_template=flags.chat_template,
        clean=cleaning.ALL if flags.clean else CleanConfig(),
    )
    if not overrides:
        return config
    from bitttt_jax.config_loading import apply_overrides

    return apply_overrides(TrainConfig(data=config), overrides).data


def _tokenizer_config(flags: Flags) -> TokenizerConfig:
    if flags.tokenizer == "bpe":
        return TokenizerConfig(kind="bpe", vocab_size=flags.vocab_size)
    if flags.vocab_size != TokenizerConfig.vocab_size:
        raise ConfigError(
            f"--vocab_size={flags.vocab_size} has no effect on --tokenizer={flags.tokenizer}",
            fix="--tokenizer=bpe",
        )
    if flags.tokenizer == "bytes":
        return TokenizerConfig()
    return TokenizerConfig(kind="file", path=flags.tokenizer)


def _counts(what: str, counters: Iterable[dict[str, int]]) -> str:
    total: collections.Counter[str] = collections.Counter()
    for counter in counters:
        total.update(counter)
    reasons = ", ".join(f"{count:,} {reason}" for reason, count in sorted(total.items()))
    return f"{what:10} {reasons or 'none'}"


def _report(manifest: Manifest, folder: str, seconds: float) -> str:
    lines = [
        f"tokens     {Path(folder).absolute()}",
        f"tokenizer  {manifest.vocab_size:,} tokens, {manifest.tokenizer_fingerprint[:16]}",
    ]
    lines += [
        f"{part.split:10} {part.name}: {part.documents:,} documents, {part.tokens:,} tokens, "
        f"{part.text_bytes:,} bytes, {part.text_bytes / part.tokens:.2f} bytes/token"
        for part in manifest.parts
    ]
    if not manifest.split("validation"):
        lines.append("validation no documents (whole ones are held out, by their hashes)")
    lines += [
        f"{'counted':10} {part.name}: {part.predictions:,} of the tokens, in replies"
        for part in manifest.parts
        if part.predictions < part.tokens
    ]
    lines.append(_counts("skipped", (source.skipped for source in manifest.sources)))
    if manifest.config.clean != CleanConfig():
        lines.append(_counts("cleaned", (source.cleaned for source in manifest.sources)))
    lines.append(f"time       {seconds:.1f} s")
    return "\n".join(lines)
