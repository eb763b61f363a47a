"""`bitttt prepare`: text into a folder of token shards."""

from __future__ import annotations

import collections
import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import tyro

from bitttt_jax.commands.progress import show_progress
from bitttt_jax.config import DataConfig, SourceConfig, TokenizerConfig
from bitttt_jax.errors import ConfigError, run_main

if TYPE_CHECKING:
    from bitttt_jax.data.manifest import Manifest

_DATA = DataConfig()
_SOURCE = SourceConfig()


@dataclasses.dataclass(frozen=True)
class Flags:
    """Turn text into a folder of token shards that training reads (data.sources=DIR).

    bitttt prepare --source=books/ --output=tokens --tokenizer=bpe --vocab_size=8192

    bitttt prepare --source=a.jsonl --source=b.jsonl --field=content --output=tokens

    bitttt prepare --verify=tokens
    """

    source: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """File, folder, or `python-stdlib`: text, JSON lines, or a Hugging Face dataset on disk."""
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
    """Files of a folder of text or JSON lines."""
    on_error: Literal["fail", "skip"] = _DATA.on_error
    """What to do with unreadable documents: stop with exit code 5, or skip and count them."""
    verify: str = ""
    """Folder made earlier: check every file's size and SHA-256, and do nothing else."""


def main(argv: Sequence[str]) -> int:
    """Runs the command; returns its exit code."""
    return run_main(_main, argv)


def _main(argv: Sequence[str]) -> None:
    flags = tyro.cli(Flags, args=list(argv), prog="bitttt prepare", use_underscores=True)
    started = time.monotonic()
    if flags.verify:
        if flags.source or flags.output:
            raise ConfigError("--verify goes without --source and --output")
        from bitttt_jax.data.shards import verify

        manifest, folder = verify(flags.verify), flags.verify
        print("every file has the size and SHA-256 of the manifest")
    else:
        config = _config(flags)
        from bitttt_jax.data.prepare import prepare

        with show_progress() as progress:
            manifest, folder = prepare(config, flags.output, progress=progress), flags.output
    _report(manifest, folder, time.monotonic() - started)


def _config(flags: Flags) -> DataConfig:
    if not flags.source or not flags.output:
        raise ConfigError("--source and --output are needed", fix="bitttt prepare --help")
    return DataConfig(
        sources=tuple(
            SourceConfig(path=path, field=flags.field, glob=flags.glob) for path in flags.source
        ),
        tokenizer=_tokenizer_config(flags),
        validation_fraction=flags.validation_fraction,
        on_error=flags.on_error,
    )


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


def _report(manifest: Manifest, folder: str, seconds: float) -> None:
    print(f"tokens     {Path(folder).absolute()}")
    print(f"tokenizer  {manifest.vocab_size:,} tokens, {manifest.tokenizer_fingerprint[:16]}")
    for part in manifest.parts:
        print(
            f"{part.split:10} {part.name}: {part.documents:,} documents, {part.tokens:,} tokens, "
            f"{part.text_bytes:,} bytes, {part.text_bytes / part.tokens:.2f} bytes/token"
        )
    if not manifest.split("validation"):
        print("validation no documents (whole ones are held out, by their hashes)")
    skipped: collections.Counter[str] = collections.Counter()
    for source in manifest.sources:
        skipped.update(source.skipped)
    reasons = ", ".join(f"{count:,} {reason}" for reason, count in sorted(skipped.items()))
    print(f"skipped    {reasons or 'none'}")
    print(f"time       {seconds:.1f} s")
