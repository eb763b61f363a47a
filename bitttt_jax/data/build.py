"""Token shards and their manifest out of sources.

Encoding runs on all cores in the threads of the `tokenizers` library: measured as fast as a pool
of processes, and there is nothing to start, feed or clean up.
"""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path

from bitttt_jax.config import DataConfig, TokenizerConfig
from bitttt_jax.data import chat_format
from bitttt_jax.data.chat_templates import ChatTemplate, with_end_of_reply
from bitttt_jax.data.cleaning import Cleaner
from bitttt_jax.data.documents import Document
from bitttt_jax.data.encoding import Encoder
from bitttt_jax.data.manifest import TOKENIZER_FILE, Manifest, Part, SourceFiles, Split, TokenType
from bitttt_jax.data.shards import ShardWriter, load_tokenizer
from bitttt_jax.data.sources import Source
from bitttt_jax.data.tokenizers import END_OF_TEXT, Tokenizer, grouped
from bitttt_jax.errors import ConfigError, DataError

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how much of it is done, and how much there is."""

_BATCH_CHARS = 1 << 22


def build(config: DataConfig, folder: Path, progress: Progress) -> Manifest:
    """Writes tokenizer.json and the shards of all sources into an empty folder.

    Returns:
      The manifest, which is not in the folder yet.
    """
    sources = [Source.find(source) for source in config.sources]
    prepared = {
        index: Manifest.load(source.root)
        for index, source in enumerate(sources)
        if source.kind == "shards"
    }
    template = chat_format.choose(config, sources, prepared)
    tokenizer = _tokenizer(config, sources, prepared, template, progress)
    if any(source.has_conversations for source in sources):
        template = chat_format.require(tokenizer, template)
        tokenizer = with_end_of_reply(tokenizer, template)
    tokenizer.save(folder / TOKENIZER_FILE)
    dtype: TokenType = "uint16" if tokenizer.vocab_size <= 1 << 16 else "uint32"
    parts: list[Part] = []
    files = []
    cleaner = Cleaner(config.clean)
    for index, source in enumerate(sources):
        summary = source.summary()  # before reading: what changes meanwhile shows later
        if index in prepared:
            parts += _referred(index, source, prepared[index])
        else:
            skipped: collections.Counter[str] = collections.Counter()
            cleaned: collections.Counter[str] = collections.Counter()
            documents = source.documents(config.on_error, skipped)
            documents = _reported(documents, f"encode {source.config.path}", source.size, progress)
            documents = cleaner.documents(documents, skipped, cleaned)
            encoder = Encoder(tokenizer, template, config.on_error, skipped)
            parts += _encode(config, index, source, documents, encoder, folder, dtype)
            counts = (dict(sorted(counter.items())) for counter in (skipped, cleaned))
            summary = SourceFiles(summary.files, summary.bytes, summary.sha256, *counts)
        files.append(summary)
    return Manifest(
        tokenizer_fingerprint=tokenizer.fingerprint,
        vocab_size=tokenizer.vocab_size,
        bos_id=tokenizer.bos_id,
        eos_id=tokenizer.eos_id,
        dtype=dtype,
        parts=tuple(parts),
        sources=tuple(files),
        config=config,
        chat_template=None if template is None else template.text,
    )


def _tokenizer(
    config: DataConfig,
    sources: list[Source],
    prepared: dict[int, Manifest],
    template: ChatTemplate | None,
    progress: Progress,
) -> Tokenizer:
    wanted = config.tokenizer
    if prepared:
        return _shared_tokenizer(wanted, sources, prepared)
    if wanted.kind == "file":
        return Tokenizer.load(wanted.path)
    special = () if template is None else template.special_names
    if wanted.kind == "bytes":
        tokenizer = Tokenizer.bytes(special)
    else:
        least = 257 + len(special)
        if wanted.vocab_size <= least:
            raise ConfigError(
                f"data.tokenizer.vocab_size={wanted.vocab_size} must exceed {least}",
                f"256 bytes, {' '.join((END_OF_TEXT, *special))}",
            )
        texts = _training_texts(config, sources, progress)
        tokenizer = Tokenizer.train(texts, wanted.vocab_size, special)
    return tokenizer if template is None else with_end_of_reply(tokenizer, template)


def _shared_tokenizer(
    wanted: TokenizerConfig, sources: list[Source], prepared: dict[int, Manifest]
) -> Tokenizer:
    """The tokenizer of prepared sources, which must agree with each other and the settings."""
    (first, manifest), *others = prepared.items()
    root = sources[first].root
    tokenizer = load_tokenizer(root)
    for index, other in others:
        if other.tokenizer_fingerprint != manifest.tokenizer_fingerprint:
            raise DataError(
                f"{sources[index].root} and {root} were prepared with different tokenizers",
                fix=f"preparing both with --tokenizer={root / TOKENIZER_FILE}",
            )
    agrees = wanted in (TokenizerConfig(), manifest.config.tokenizer) or (
        wanted.kind == "file" and Tokenizer.load(wanted.path).fingerprint == tokenizer.fingerprint
    )
    if not agrees:
        raise DataError(
            f"{root} was prepared with another tokenizer than data.tokenizer",
            f"with {manifest.config.tokenizer}, not {wanted}",
            "leaving data.tokenizer at its default: prepared sources bring their own",
        )
    return tokenizer


def _training_texts(config: DataConfig, sources: list[Source], progress: Progress) -> Iterator[str]:
    cleaner = Cleaner(config.clean)
    for source in sources:
        uncounted: collections.Counter[str] = collections.Counter()
        documents = source.documents(config.on_error, uncounted)
        activity = f"learn tokens from {source.config.path}"
        documents = _reported(documents, activity, source.size, progress)
        documents = cleaner.documents(documents, uncounted, uncounted)
        for document, split in _divided(documents, config.validation_fraction):
            if split == "train":
                yield document.text


def _encode(
    config: DataConfig,
    index: int,
    source: Source,
    documents: Iterator[Document],
    encoder: Encoder,
    folder: Path,
    dtype: TokenType,
) -> Iterator[Part]:
    """Writes the shards of a source, and returns what they hold."""
    fraction, masked = config.validation_fraction, source.has_conversations
    with (
        ShardWriter(folder, f"{index:02d}-train", dtype, masked=masked) as train,
        ShardWriter(folder, f"{index:02d}-validation", dtype, masked=masked) as validation,
    ):
        writers: dict[Split, ShardWriter] = {"train": train, "validation": validation}
        divided = _divided(documents, fraction)
        for group in grouped(divided, lambda item: len(item[0].text), _BATCH_CHARS):
            encoded = encoder.encode([document for document, _ in group])
            for (_, split), item in zip(group, encoded, strict=True):
                if item is not None:
                    writers[split].add(*item)
        for split, writer in writers.items():
            shards = writer.finish()
            if shards:
                yield Part(source.config.path, split, index, 1.0, "", shards)
            elif split == "train":
                raise _nothing_to_train_on(source, fraction, encoder)


def _nothing_to_train_on(source: Source, fraction: float, encoder: Encoder) -> DataError:
    left_out = ", ".join(f"{count} {reason}" for reason, count in encoder.skipped.items())
    return DataError(
        f"no document of {source.config.path} is left to train on",
        f"by their hashes, validation_fraction={fraction} takes all of them"
        + (f" but those left out: {left_out}" if left_out else ""),
        "data.validation_fraction=0 (--validation_fraction=0), or more documents",
    )


def _referred(index: int, source: Source, manifest: Manifest) -> Iterator[Part]:
    total = sum(map(manifest.weight, manifest.split("train")))
    for part in manifest.parts:
        yield dataclasses.replace(
            part,
            source=index,
            share=manifest.weight(part) / total,
            folder=str((source.root / part.folder).absolute()),
        )


def _reported(
    documents: Iterator[Document], activity: str, total: int, progress: Progress
) -> Iterator[Document]:
    done = 0
    progress(activity, 0, total)
    for document in documents:
        yield document
        done = min(done + document.size, total)
        progress(activity, done, total)
    progress(activity, total, total)


def _divided(
    documents: Iterator[Document], validation_fraction: float
) -> Iterator[tuple[Document, Split]]:
    """Documents and their splits; the end of an only document is one of its own, held out."""
    first, second = next(documents, None), next(documents, None)
    is_only = first is not None and second is None
    if first and is_only and not first.messages and validation_fraction > 0:
        at = round(len(first.text) * (1 - validation_fraction))
        cut = _line_start(first.text, max(at, 1))
        yield dataclasses.replace(first, text=first.text[:cut]), "train"
        if cut < len(first.text):
            yield dataclasses.replace(first, text=first.text[cut:]), "validation"
        return
    for document in itertools.chain(filter(None, (first, second)), documents):
        yield document, _split(document.text.encode(), validation_fraction)


def _line_start(text: str, at: int) -> int:
    """The first line that starts at a place or after it; the end of the text if none does."""
    return text.find("\n", at - 1) + 1 or len(text)


def _split(data: bytes, validation_fraction: float) -> Split:
    """The split of a document, by nothing but its bytes."""
    number = int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "big")
    return "validation" if number < validation_fraction * 2**64 else "train"
