"""Tokenizers: bytes, byte-level BPE trained here, or any tokenizer.json.

All three are one class around the `tokenizers` library, so that training, prompts and streamed
output go through the same code. Text is never searched for special tokens: a document that
mentions `<|endoftext|>` is encoded as those characters and can't end itself.
"""

from __future__ import annotations

import functools
import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from bitttt_jax.data import atomic
from bitttt_jax.errors import DataError

END_OF_TEXT = "<|endoftext|>"

# Ordered: where a vocabulary has several, the first one ends documents (others end chat turns).
_EOS_NAMES = (
    END_OF_TEXT,
    "<|end_of_text|>",
    "<|end▁of▁sentence|>",
    "</s>",
    "<eos>",
    "<|im_end|>",
    "<|eot_id|>",
)
_BOS_NAMES = ("<|begin_of_text|>", "<|begin▁of▁sentence|>", "<s>", "<bos>")

# The library holds about 100 bytes a token while it encodes, so long documents go in pieces.
_PIECE_CHARS = 1 << 17
_GROUP_CHARS = 1 << 22
# Byte-level pre-tokenizers always split between a letter or digit and a line end, and between
# two words before the space: a cut there leaves the tokens as they are.
_CUT = re.compile(r"(?s:.*)[^\W_](?=\n| [^\W_])")

Item = TypeVar("Item")


class Tokenizer:
    """Text to token ids and back.

    Args:
      text: the contents of a tokenizer.json.

    Raises:
      DataError: `text` is no tokenizer, or has no token that can end a document.
    """

    def __init__(self, text: str):
        try:
            self._backend = tokenizers.Tokenizer.from_str(text)
        except Exception as error:  # the library raises plain Exception
            raise DataError("this is not a tokenizer.json", str(error)) from None
        self._backend.no_truncation()
        self._backend.no_padding()
        self._backend.encode_special_tokens = True
        self._text = text
        eos = self._first_of(_EOS_NAMES)
        if eos is None:
            raise DataError(
                "the tokenizer has no token that ends a document",
                f"none of {' '.join(_EOS_NAMES)} is in its vocabulary",
                f"adding {END_OF_TEXT} to its added_tokens",
            )
        bos = self._first_of(_BOS_NAMES)
        self.eos_id: int = eos
        """The token after the last one of a document."""
        self.bos_id: int = eos if bos is None else bos
        """The token before the first one of a document; `eos_id` where there is no other."""
        self.adds_bos: bool = True
        """Whether documents begin with `bos_id`."""

    @classmethod
    def bytes(cls) -> Tokenizer:
        """One token a byte, its id the byte's value, and `<|endoftext|>` with id 256."""
        vocab = {character: byte for byte, character in enumerate(_byte_characters())}
        backend = _byte_level(models.BPE(vocab=vocab, merges=[]), use_regex=False)
        backend.add_special_tokens([END_OF_TEXT])
        return cls(backend.to_str())

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int) -> Tokenizer:
        """Learns byte-level BPE merges; the same texts in the same order give the same tokens.

        Args:
          texts: the documents.
          vocab_size: at most this many tokens, the 256 bytes and `<|endoftext|>` included; fewer
            if no pair of tokens occurs twice any more.
        """
        backend = _byte_level(models.BPE(), use_regex=True)
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=[END_OF_TEXT],
            initial_alphabet=_byte_characters(),
            show_progress=False,
        )
        backend.train_from_iterator((piece for text in texts for piece in _pieces(text)), trainer)
        return cls(backend.to_str())

    @classmethod
    def load(cls, path: str | Path) -> Tokenizer:
        """Reads a tokenizer.json.

        Raises:
          DataError: the file is missing, damaged, or lacks an end-of-document token.
        """
        try:
            return cls(Path(path).expanduser().read_text("utf-8"))
        except OSError as error:
            raise DataError(f"can't read the tokenizer {path}: {error.strerror}") from None
        except UnicodeDecodeError as error:
            raise DataError(f"{path} is not a tokenizer.json", f"not UTF-8: {error}") from None
        except DataError as error:
            raise DataError(f"{path}: {error.what}", error.why, error.fix) from None

    def save(self, path: str | Path) -> None:
        """Writes the tokenizer.json."""
        atomic.write_text(Path(path), self._text)

    @functools.cached_property
    def fingerprint(self) -> str:
        """Hexadecimal SHA-256 of the JSON with sorted keys and no white space."""
        canonical = json.dumps(json.loads(self._text), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()

    @functools.cached_property
    def vocab_size(self) -> int:
        """One more than the largest id; smaller than a model's embedding, which is padded."""
        return max(self._backend.get_vocab(with_added_tokens=True).values()) + 1

    def token_id(self, token: str) -> int | None:
        """The id of a token by its exact name, such as `<|eot_id|>`; None if there is none."""
        id_: int | None = self._backend.token_to_id(token)
        return id_

    def encode(self, text: str) -> np.ndarray:
        """Token ids [T] (int32), without special tokens."""
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Encodes texts on all cores (RAYON_NUM_THREADS limits them).

        Only for texts over 131,072 characters and tokenizers that aren't byte-level can the
        tokens differ from the library's, at the cuts between pieces.
        """
        pieces = ((index, piece) for index, text in enumerate(texts) for piece in _pieces(text))
        parts: list[list[np.ndarray]] = [[] for _ in texts]
        for group in grouped(pieces, lambda item: len(item[1]), _GROUP_CHARS):
            encodings = self._backend.encode_batch_fast(
                [piece for _, piece in group], add_special_tokens=False
            )
            for (index, _), encoding in zip(group, encodings, strict=True):
                parts[index].append(np.array(encoding.ids, dtype=np.int32))
        return [np.concatenate(part) for part in parts]

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """Text of token ids; special tokens and ids beyond the vocabulary give nothing.

        Bytes that are no UTF-8 become U+FFFD.
        """
        text: str = self._backend.decode([int(id_) for id_ in ids], skip_special_tokens=True)
        return text

    def _first_of(self, names: Iterable[str]) -> int | None:
        ids = (self.token_id(name) for name in names)
        return next((id_ for id_ in ids if id_ is not None), None)


class Decoder:
    """Decodes a stream token by token: text comes out once its characters are complete.

    Args:
      tokenizer: the tokenizer that the ids belong to.
    """

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer = tokenizer
        # The tokens last given out stay as context: some decoders drop the first token's space.
        self._context: list[int] = []
        self._pending: list[int] = []
        self._given = 0  # characters of their text that are out

    def push(self, token: int) -> str:
        """Takes the next token; returns the text that it completes, often none or one word."""
        self._pending.append(token)
        text = self._tokenizer.decode(self._context + self._pending)
        if text.endswith("\ufffd"):  # may become a character, those before it won't
            return self._give(text[:-1])
        given = self._give(text)
        if given:
            self._context, self._pending = self._pending, []
            self._given = len(self._tokenizer.decode(self._context))
        return given

    def flush(self) -> str:
        """Returns what is left at the end, an incomplete character as U+FFFD."""
        return self._give(self._tokenizer.decode(self._context + self._pending))

    def _give(self, text: str) -> str:
        given = text[self._given :]
        self._given = max(self._given, len(text))
        return given


def grouped(items: Iterable[Item], size: Callable[[Item], int], limit: int) -> Iterator[list[Item]]:
    """Consecutive items in lists; a list is closed once its sizes add up to `limit`."""
    group, total = [], 0
    for item in items:
        group.append(item)
        total += size(item)
        if total >= limit:
            yield group
            group, total = [], 0
    if group:
        yield group


def _pieces(text: str) -> Iterator[str]:
    start = 0
    while len(text) - start > _PIECE_CHARS:
        cut = _CUT.match(text, start, start + _PIECE_CHARS)
        end = cut.end() if cut else start + _PIECE_CHARS
        yield text[start:end]
        start = end
    yield text[start:]


def _byte_level(model: models.Model, use_regex: bool) -> tokenizers.Tokenizer:
    backend = tokenizers.Tokenizer(model)
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=use_regex)
    backend.decoder = decoders.ByteLevel()
    return backend


def _byte_characters() -> list[str]:
    """The characters by which byte-level vocabularies write the bytes 0 to 255, in that order.

    Bytes that print in Latin-1 stand for themselves, the others for the characters from 256 on.
    """
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = (byte for byte in range(256) if byte not in printable)
    stand_ins = {byte: 256 + index for index, byte in enumerate(others)}
    return [chr(stand_ins.get(byte, byte)) for byte in range(256)]
