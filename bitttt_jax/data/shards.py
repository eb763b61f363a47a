"""Shards of tokens on disk: written document by document, opened as memory maps."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, NamedTuple

import numpy as np

from bitttt_jax.data.manifest import (
    SPLITS,
    TOKENIZER_FILE,
    LossMask,
    Manifest,
    Part,
    Shard,
    Split,
    TokenType,
)
from bitttt_jax.data.tokenizers import Tokenizer
from bitttt_jax.errors import DataError

# A document that would make a shard longer than this starts the next one.
_SHARD_TOKENS = 1 << 27
_OFFSET = np.dtype("<u8")
_FLAG = np.dtype("u1")


class Counted(NamedTuple):
    """Which predictions of a document count for the loss."""

    mask_T: np.ndarray
    """At each of its tokens whether that of the next one does, bool [T]."""
    text_bytes: int
    """UTF-8 bytes of the text that these predict."""


class ShardWriter:
    """Writes the documents of one source and split; use it in a `with` statement.

    Args:
      folder: where the shards go.
      stem: start of their names.
      dtype: `uint16` or `uint32`, wide enough for every token id.
      masked: write a mask too: in some documents, not every prediction counts.
    """

    def __init__(self, folder: Path, stem: str, dtype: TokenType, *, masked: bool = False):
        self._folder, self._stem, self._masked = folder, stem, masked
        self._dtype = _token_dtype(dtype)
        self._file: BinaryIO | None = None
        self._mask: _MaskWriter | None = None
        self._shards: list[Shard] = []

    def add(self, tokens_T: np.ndarray, text_bytes: int, counted: Counted | None = None) -> None:
        """Appends a document of at least one token.

        Args:
          tokens_T: its tokens.
          text_bytes: UTF-8 bytes of its text.
          counted: which predictions count, given where the writer is `masked`; None for all.
        """
        if self._file is not None and self._offsets[-1] + len(tokens_T) > _SHARD_TOKENS:
            self._finish_shard()
        if self._file is None:
            self._start_shard()
        assert self._file is not None
        data = tokens_T.astype(self._dtype).tobytes()
        self._file.write(data)
        self._digest.update(data)
        self._offsets.append(self._offsets[-1] + len(tokens_T))
        self._text_bytes += text_bytes
        if self._mask is not None:
            counted = counted or Counted(np.ones(len(tokens_T), bool), text_bytes)
            self._mask.add(counted)

    def finish(self) -> tuple[Shard, ...]:
        """Closes the last shard; returns all, none if there were no documents."""
        if self._file is not None:
            self._finish_shard()
        return tuple(self._shards)

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for file in (self._file, self._mask):
            if file is not None:
                file.close()

    def _start_shard(self) -> None:
        self._name = f"{self._stem}-{len(self._shards):05d}.bin"
        self._file = (self._folder / self._name).open("wb")
        self._digest = hashlib.sha256()
        self._offsets, self._text_bytes = [0], 0
        if self._masked:
            self._mask = _MaskWriter((self._folder / self._name).with_suffix(".mask"))

    def _finish_shard(self) -> None:
        assert self._file is not None
        self._file.close()
        self._file = None
        offsets = np.array(self._offsets, _OFFSET).tobytes()
        shard = Shard(
            mask=None if self._mask is None else self._mask.finish(),
            file=self._name,
            tokens=self._offsets[-1],
            documents=len(self._offsets) - 1,
            text_bytes=self._text_bytes,
            sha256=self._digest.hexdigest(),
            offsets_sha256=hashlib.sha256(offsets).hexdigest(),
        )
        (self._folder / shard.offsets_file).write_bytes(offsets)
        self._shards.append(shard)


class _MaskWriter:
    """Writes the mask of one shard."""

    def __init__(self, path: Path):
        self._file = path.open("wb")
        self._digest = hashlib.sha256()
        self._predictions = self._text_bytes = 0

    def add(self, counted: Counted) -> None:
        """Appends that of a document."""
        data = counted.mask_T.astype(_FLAG).tobytes()
        self._file.write(data)
        self._digest.update(data)
        self._predictions += int(np.count_nonzero(counted.mask_T))
        self._text_bytes += counted.text_bytes

    def finish(self) -> LossMask:
        """Closes the file."""
        self.close()
        return LossMask(self._digest.hexdigest(), self._predictions, self._text_bytes)

    def close(self) -> None:
        """Closes the file, complete or not."""
        self._file.close()


@dataclasses.dataclass(frozen=True)
class TokenShard:
    """The memory maps of one shard."""

    tokens: np.ndarray
    """Tokens of all documents, one after another [tokens]."""
    offsets: np.ndarray
    """Start of each document in `tokens`, and the end of the last [documents + 1]."""
    mask: np.ndarray | None = None
    """At each token 1 where the prediction of the next one counts, else 0 [tokens]; None where all
    count."""


@dataclasses.dataclass(frozen=True)
class TokenSource:
    """The shards of one source in one split."""

    name: str
    """Path of the source."""
    weight: float
    """Weight in the mixture."""
    shards: tuple[TokenShard, ...]
    """Shards in order."""


@dataclasses.dataclass(frozen=True)
class TokenDataset:
    """A split of prepared data, open for reading."""

    manifest: Manifest
    """The folder's manifest."""
    sources: tuple[TokenSource, ...]
    """The sources that have documents in this split."""
    parts: tuple[Part, ...]
    """Their entries in the manifest."""

    @classmethod
    def open(cls, folder: str | Path, split: Split, *, verify: bool = False) -> TokenDataset:
        """Maps the shards of a split; reads none of the tokens unless asked to verify them.

        Args:
          folder: a folder made by `prepare`.
          split: `train` or `validation`.
          verify: compare the SHA-256 of every file too.

        Raises:
          DataError: the folder, a file, or the whole split is missing or damaged.
        """
        folder = Path(folder)
        manifest = Manifest.load(folder)
        parts = manifest.split(split)
        if not parts:
            raise _empty_split(folder, split, manifest)
        sources = []
        for part in parts:
            opened = [
                _open_shard(folder / part.folder, shard, manifest.dtype, verify)
                for shard in part.shards
            ]
            sources.append(TokenSource(part.name, manifest.weight(part), tuple(opened)))
        return cls(manifest, tuple(sources), parts)

    @property
    def tokens(self) -> int:
        """Stored tokens, which is also the number of predictions in an epoch."""
        return sum(part.tokens for part in self.parts)

    @property
    def documents(self) -> int:
        """Documents."""
        return sum(part.documents for part in self.parts)

    @property
    def text_bytes(self) -> int:
        """UTF-8 bytes of the documents."""
        return sum(part.text_bytes for part in self.parts)

    @property
    def predictions(self) -> int:
        """Predictions that count for the loss in an epoch."""
        return sum(part.predictions for part in self.parts)

    @property
    def predicted_bytes(self) -> int:
        """UTF-8 bytes of the text that these predict."""
        return sum(part.predicted_bytes for part in self.parts)


def load_tokenizer(folder: str | Path) -> Tokenizer:
    """The tokenizer of a prepared folder.

    Raises:
      DataError: the folder or its tokenizer is missing, or isn't the one of the tokens.
    """
    manifest, path = Manifest.load(folder), Path(folder) / TOKENIZER_FILE
    tokenizer = Tokenizer.load(path)
    if tokenizer.fingerprint != manifest.tokenizer_fingerprint:
        raise _damaged(path, "its fingerprint isn't the one in the manifest")
    return tokenizer


def verify(folder: str | Path) -> Manifest:
    """Compares every file of a prepared folder with the manifest, by size and SHA-256.

    Raises:
      DataError: something is missing or damaged; names the first such file.
    """
    manifest = Manifest.load(folder)
    load_tokenizer(folder)
    for split in SPLITS:
        if manifest.split(split):
            TokenDataset.open(folder, split, verify=True)
    return manifest


def _open_shard(folder: Path, shard: Shard, dtype: TokenType, verify: bool) -> TokenShard:
    tokens = _open_array(folder / shard.file, _token_dtype(dtype), shard.tokens)
    offsets = _open_array(folder / shard.offsets_file, _OFFSET, shard.documents + 1)
    if offsets[0] != 0 or offsets[-1] != shard.tokens:
        raise _damaged(folder / shard.offsets_file, "its offsets don't span the shard's tokens")
    if verify:
        _check_digest(folder / shard.file, shard.sha256)
        _check_digest(folder / shard.offsets_file, shard.offsets_sha256)
    if shard.mask is None:
        return TokenShard(tokens, offsets)
    mask = _open_array(folder / shard.mask_file, _FLAG, shard.tokens)
    if verify:
        _check_digest(folder / shard.mask_file, shard.mask.sha256)
    return TokenShard(tokens, offsets, mask)


def _open_array(path: Path, dtype: np.dtype, length: int) -> np.ndarray:
    expected = length * dtype.itemsize
    try:
        found = path.stat().st_size
        if found != expected:
            raise _damaged(path, f"it should have {expected} bytes and has {found}")
        return np.memmap(path, dtype, mode="r")
    except OSError as error:
        raise _damaged(path, error.strerror or str(error)) from None


def _check_digest(path: Path, expected: str) -> None:
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != expected:
        raise _damaged(path, f"its SHA-256 should be {expected} and is {found}")


def _damaged(path: Path, why: str) -> DataError:
    return DataError(f"{path} is damaged or missing", why, "preparing the data again")


def _empty_split(folder: Path, split: Split, manifest: Manifest) -> DataError:
    documents = sum(part.documents for part in manifest.parts)
    return DataError(
        f"{folder} has no {split} documents",
        f"documents are assigned by their hash, and validation_fraction="
        f"{manifest.config.validation_fraction} of {documents} gave none",
        "another data.validation_fraction, or more and smaller documents",
    )


def _token_dtype(name: TokenType) -> np.dtype:
    return np.dtype(name).newbyteorder("<")
