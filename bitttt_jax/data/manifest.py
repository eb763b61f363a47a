"""manifest.json: what a folder of prepared tokens holds, and what it was made from.

The folder has, for every source and split, numbered shards: `NAME.bin` (the tokens of whole
documents one after another, little-endian uint16 or uint32) and `NAME.offsets` (uint64: where
each document starts, and the end of the last one), beside manifest.json and tokenizer.json.
A document is stored as [bos] + tokens, or its tokens alone where the tokenizer adds no bos; the
eos after its last token is implied. Sources of conversations also have `NAME.mask` (a byte a token:
1 where the prediction of the token after it counts for the loss, else 0).

Version 1 had neither masks nor documents without bos.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from pathlib import Path
from typing import Any, ClassVar, Literal

import pydantic

from bitttt_jax.config import DataConfig
from bitttt_jax.data import atomic
from bitttt_jax.errors import DataError

FORMAT_VERSION = 2
_READ_VERSIONS = (1, FORMAT_VERSION)
MANIFEST_FILE = "manifest.json"
TOKENIZER_FILE = "tokenizer.json"

Split = Literal["train", "validation"]
SPLITS: tuple[Split, ...] = ("train", "validation")
TokenType = Literal["uint16", "uint32"]


@dataclasses.dataclass(frozen=True)
class LossMask:
    """Which of a shard's predictions count."""

    sha256: str
    """Hexadecimal digest of the mask's file."""
    predictions: int
    """How many count."""
    text_bytes: int
    """UTF-8 bytes of the text that these predict."""


@dataclasses.dataclass(frozen=True)
class Shard:
    """Two files or three: tokens, the offsets of documents in them, and which predictions count."""

    file: str
    """Name of the tokens' file in its folder."""
    tokens: int
    """Stored tokens, the bos of every document included."""
    documents: int
    """Documents."""
    text_bytes: int
    """UTF-8 bytes of the documents."""
    sha256: str
    """Hexadecimal digest of the tokens' file."""
    offsets_sha256: str
    """Hexadecimal digest of the offsets' file."""
    mask: LossMask | None = None
    """None where every prediction counts."""

    @property
    def mask_file(self) -> str:
        """Name of the mask's file, if there is one."""
        return Path(self.file).with_suffix(".mask").name

    @property
    def offsets_file(self) -> str:
        """Name of the offsets' file."""
        return Path(self.file).with_suffix(".offsets").name


@dataclasses.dataclass(frozen=True)
class Part:
    """The tokens of one source in one split."""

    name: str
    """Path of the source."""
    split: Split
    """Split."""
    source: int
    """Index in the configuration's sources."""
    share: float
    """Part of that source's weight: under 1 for one of several in a folder of shards."""
    folder: str
    """Where the shards are: empty for the manifest's own folder, or an absolute path."""
    shards: tuple[Shard, ...]
    """Shards in order; at least one."""

    @property
    def tokens(self) -> int:
        """Stored tokens, which is also the number of predictions in an epoch."""
        return sum(shard.tokens for shard in self.shards)

    @property
    def predictions(self) -> int:
        """Those predictions that count for the loss."""
        return sum(s.tokens if s.mask is None else s.mask.predictions for s in self.shards)

    @property
    def predicted_bytes(self) -> int:
        """UTF-8 bytes of the text that these predict."""
        return sum(s.text_bytes if s.mask is None else s.mask.text_bytes for s in self.shards)

    @property
    def documents(self) -> int:
        """Documents."""
        return sum(shard.documents for shard in self.shards)

    @property
    def text_bytes(self) -> int:
        """UTF-8 bytes of the documents."""
        return sum(shard.text_bytes for shard in self.shards)


@dataclasses.dataclass(frozen=True)
class SourceFiles:
    """The files that a source consisted of when it was read."""

    files: int
    """Number of files."""
    bytes: int
    """Their size."""
    sha256: str
    """Digest of their names, sizes and modification times."""
    skipped: dict[str, int] = dataclasses.field(default_factory=dict)
    """Documents left out, by reason."""
    cleaned: dict[str, int] = dataclasses.field(default_factory=dict)
    """Documents changed by `data.clean`, by what was changed."""


@dataclasses.dataclass(frozen=True)
class Manifest:
    """Contents of manifest.json."""

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    tokenizer_fingerprint: str
    """`Tokenizer.fingerprint` of the tokenizer.json beside it."""
    vocab_size: int
    """Largest token id + 1."""
    bos_id: int
    """First token of every document, unless the tokenizer adds none."""
    eos_id: int
    """Implied target of the last token of every document."""
    dtype: TokenType
    """Type of the stored tokens."""
    parts: tuple[Part, ...]
    """One entry per source and split that has documents."""
    sources: tuple[SourceFiles, ...]
    """What was read, in the order of the configuration's sources."""
    config: DataConfig
    """The configuration it was made from."""
    chat_template: str | None = None
    """Jinja template of the conversations, where there are some or one was configured."""
    format_version: int = FORMAT_VERSION
    """Rises when older programs can't read the folder."""

    def split(self, name: Split) -> tuple[Part, ...]:
        """The parts of a split."""
        return tuple(part for part in self.parts if part.split == name)

    @property
    def has_conversations(self) -> bool:
        """Whether in some documents not every prediction counts."""
        return any(shard.mask is not None for part in self.parts for shard in part.shards)

    def weight(self, part: Part) -> float:
        """Weight of a part in the mixture."""
        return self.config.sources[part.source].weight * part.share

    @classmethod
    def load(cls, folder: str | Path) -> Manifest:
        """Reads the manifest of a folder made by `prepare`.

        Raises:
          DataError: there is none, it is damaged, or a newer program wrote it.
        """
        path = Path(folder) / MANIFEST_FILE
        try:
            text = path.read_bytes()
        except OSError as error:
            raise DataError(
                f"{folder} holds no prepared tokens",
                f"can't read {path}: {error.strerror}",
                f"bitttt prepare --source=TEXT --output={folder}",
            ) from None
        try:
            version = json.loads(text)["format_version"]
            if version in _READ_VERSIONS:
                return _adapter().validate_json(text)
        except (ValueError, KeyError, TypeError) as error:
            fix = "preparing the data again into another folder"
            raise DataError(f"{path} is damaged", str(error), fix) from None
        raise DataError(
            f"{path} has format version {version!r}, this program reads up to {FORMAT_VERSION}",
            fix="a newer bitttt_jax, or preparing the data again",
        )

    def save(self, folder: Path) -> None:
        """Writes the manifest into a folder; the folder counts as prepared from then on."""
        written = dataclasses.replace(self, format_version=FORMAT_VERSION)
        text = _adapter().dump_json(written, indent=2).decode()
        atomic.write_text(folder / MANIFEST_FILE, text + "\n")


@functools.cache
def _adapter() -> pydantic.TypeAdapter[Manifest]:
    return pydantic.TypeAdapter(Manifest)
