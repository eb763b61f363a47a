"""Tokenizers: bytes, byte-level BPE trained here, or any tokenizer.json.

All three are one class around the `tokenizers` library, so that training, prompts and streamed
output go through the same code. Text is never searched for special tokens: a document that
mentions `<|endoftext|>` is encoded as those characters and can't end itself. Only what a chat
template wrote is, and what it took from the messages is guarded against that.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

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
STOP_NAMES = (*_EOS_NAMES, "<|eom_id|>", "<|end|>", "<end_of_turn>", "<EOT>")
"""What ends a reply in one of the chat formats, whichever of them a model was taught."""

GUARD = "\ufdd0"
"""A character that no text has (Unicode reserves it): it keeps its neighbours from being read as a
special token, and is dropped before they are encoded."""

_MOST_TOKENS = 1 << 24

# Before a stream; as many as one character can have.
_CONTEXT_TOKENS = 4

# Tokens of a stream whose last character isn't complete; a character has four bytes at most.
_MOST_PENDING = 16

# The library holds about 100 bytes a token while it encodes, so long documents go in pieces.
_PIECE_CHARS = 1 << 17
_GROUP_CHARS = 1 << 22
# Byte-level pre-tokenizers always split between a letter or digit and a line end, and between
# two words before the space: a cut there leaves the tokens as they are.
_CUT = re.compile(r"(?s:.*)[^\W_](?=\n| [^\W_])")

_BYTE = re.compile("<0x[0-9A-F]{2}>")

Item = TypeVar("Item")
Bytes = bytes  # which a class below has as a method


class Tokenizer:
    """Text to token ids and back.

    Ids that are given go into the tokenizer.json, to the place that the format has for named
    special tokens (its post-processor), and are found there when it is read again.

    Args:
      text: the contents of a tokenizer.json.
      bos_id: the token before a document, where the names in the vocabulary don't tell.
      eos_id: the token after a document, likewise.
      stop_ids: tokens that end a reply, besides `eos_id` and those known by their names.
      adds_bos: whether documents begin with `bos_id`.

    Raises:
      DataError: `text` is no tokenizer, lacks a token of one of the ids, or has no token that can
        end a document.
    """

    def __init__(
        self,
        text: str,
        *,
        bos_id: int | None = None,
        eos_id: int | None = None,
        stop_ids: Iterable[int] = (),
        adds_bos: bool | None = None,
    ):
        self._backend = _backend(text)
        self._backend.encode_special_tokens = True
        kept = _kept_ids(self._backend)
        ids = _Ids(
            kept.bos if bos_id is None else bos_id,
            kept.eos if eos_id is None else eos_id,
            tuple(stop_ids) or kept.stop,
            kept.adds_bos if adds_bos is None else adds_bos,
        )
        for id_ in (ids.bos, ids.eos, *ids.stop):
            if id_ is not None and self.token(id_) is None:
                raise DataError(f"the tokenizer has no token {id_}", "but is said to use it")
        eos = self._first_of(_EOS_NAMES) if ids.eos is None else ids.eos
        if eos is None:
            raise DataError(
                "the tokenizer has no token that ends a document",
                f"none of {' '.join(_EOS_NAMES)} is in its vocabulary",
                f"adding {END_OF_TEXT} to its added_tokens",
            )
        bos = self._first_of(_BOS_NAMES) if ids.bos is None else ids.bos
        self.eos_id: int = eos
        """The token after the last one of a document."""
        self.bos_id: int = eos if bos is None else bos
        """The token before the first one of a document; `eos_id` where there is no other."""
        self.adds_bos: bool = ids.adds_bos
        """Whether documents begin with `bos_id`: ours do, those of some other programs don't."""
        self.stop_ids: tuple[int, ...] = tuple(sorted({eos, *ids.stop, *self._named_stops()}))
        """The tokens that end a reply."""
        self._given = text if ids == kept else None
        if ids != kept:
            self._keep_ids(ids.stop)

    @classmethod
    def bytes(cls, special: Sequence[str] = ()) -> Tokenizer:
        """One token a byte, its id the byte's value, and `<|endoftext|>` with id 256.

        Args:
          special: names of further special tokens, such as `<|user|>`, from 257 on.
        """
        vocab = {character: byte for byte, character in enumerate(byte_characters())}
        backend = _byte_level(models.BPE(vocab=vocab, merges=[]), use_regex=False)
        backend.add_special_tokens(list(dict.fromkeys([END_OF_TEXT, *special])))
        return cls(backend.to_str())

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int, special: Sequence[str] = ()) -> Tokenizer:
        """Learns byte-level BPE merges; the same texts in the same order give the same tokens.

        Args:
          texts: the documents.
          vocab_size: at most this many tokens, the 256 bytes and `<|endoftext|>` included; fewer
            if no pair of tokens occurs twice any more.
          special: names of further special tokens, such as `<|user|>`; they count too.
        """
        backend = _byte_level(models.BPE(), use_regex=True)
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=list(dict.fromkeys([END_OF_TEXT, *special])),
            initial_alphabet=byte_characters(),
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
        atomic.write_text(Path(path), self.text)

    @functools.cached_property
    def text(self) -> str:
        """The contents of the tokenizer.json."""
        return self._backend.to_str() if self._given is None else self._given

    @functools.cached_property
    def fingerprint(self) -> str:
        """Hexadecimal SHA-256 of the JSON with sorted keys and no white space."""
        canonical = json.dumps(json.loads(self.text), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()

    @functools.cached_property
    def vocab_size(self) -> int:
        """One more than the largest id; smaller than a model's embedding, which is padded."""
        size = max(self._backend.get_vocab(with_added_tokens=True).values()) + 1
        if size > _MOST_TOKENS:
            raise DataError(f"the tokenizer has token {size - 1}", f"at most {_MOST_TOKENS} can be")
        return size

    def token_id(self, token: str) -> int | None:
        """The id of a token by its exact name, such as `<|eot_id|>`; None if there is none."""
        id_: int | None = self._backend.token_to_id(token)
        return id_

    def token(self, id_: int) -> str | None:
        """The name of a token, such as `<|eot_id|>`; None if there is no such id."""
        token: str | None = None
        if 0 <= id_ < _MOST_TOKENS:
            token = self._backend.id_to_token(id_)
        return token

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
            with _no_panic():
                encodings = self._backend.encode_batch_fast(
                    [piece for _, piece in group], add_special_tokens=False
                )
            for (index, _), encoding in zip(group, encodings, strict=True):
                parts[index].append(np.array(encoding.ids, dtype=np.int32))
        return [np.concatenate(part) for part in parts]

    def encode_with_special(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        """Encodes text that a chat template wrote: names of special tokens are tokens.

        Args:
          text: what came from outside the template is guarded in it (`guard`).

        Returns:
          Token ids [T] (int32), and the characters of `text` from which each was made: int64
          [T, 2] of the first one's place, and the place after the last one.
        """
        with _no_panic():
            encoding = self._chat_backend.encode(text, add_special_tokens=False)
        spans_T2 = np.array(encoding.offsets, np.int64).reshape(-1, 2)
        return np.array(encoding.ids, dtype=np.int32), spans_T2

    def guard(self, text: str, *, edges: bool = False) -> str:
        """Text in which `encode_with_special` finds no special or other added token.

        Args:
          text: of a user, say; loses every `GUARD` that it has.
          edges: guard every character that a token's name begins or ends with, so that the text
            can't even be a part of one that continues outside it.
        """
        text = text.replace(GUARD, "")
        names = self._guarded_names
        if not names:
            return text
        if edges:
            ends = _any_of({name[end] for name in names for end in (0, -1)})
            return re.sub(f"({ends})", rf"{GUARD}\1{GUARD}", text)
        # Only looks ahead, so that a name that begins within another one is found too.
        first = _any_of({name[0] for name in names})
        return re.sub(f"(?={'|'.join(map(re.escape, names))})({first})", rf"\1{GUARD}", text)

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """Text of token ids; special tokens and ids beyond the vocabulary give nothing.

        Bytes that are no UTF-8 become U+FFFD.
        """
        text: str = self._backend.decode([int(id_) for id_ in ids], skip_special_tokens=True)
        return text

    def token_bytes(self, id_: int) -> Bytes:
        """The bytes of a token's text, of which a character's other bytes may be other tokens'.

        Special tokens and ids beyond the vocabulary have none.
        """
        text, name = self.decode([id_]), self.token(id_) or ""
        if "\ufffd" in text and _BYTE.fullmatch(name):
            return bytes.fromhex(name[3:5])
        if "\ufffd" in text and all(character in _BYTE_OF for character in name):
            return bytes(_BYTE_OF[character] for character in name)
        # SentencePiece's decoder drops the space before the first word.
        is_word = name.startswith("\u2581") and not text.startswith(" ")
        return f" {text}".encode() if is_word else text.encode()

    def _first_of(self, names: Iterable[str]) -> int | None:
        ids = (self.token_id(name) for name in names)
        return next((id_ for id_ in ids if id_ is not None), None)

    def _named_stops(self) -> Iterator[int]:
        """Ids of the stop tokens' names; where they are ordinary text, they stop nothing."""
        added = self._backend.get_added_tokens_decoder()
        ids = (self.token_id(name) for name in STOP_NAMES)
        return (id_ for id_ in ids if id_ is not None and id_ in added and added[id_].special)

    def _keep_ids(self, stop: tuple[int, ...]) -> None:
        """Puts the ids of the documents' ends and of replies' where the tokenizer.json has them."""
        ids = {"bos": [self.bos_id], "eos": [self.eos_id], "stop": list(stop)}
        self._backend.post_processor = processors.TemplateProcessing(
            single="bos $A" if self.adds_bos else "$A",
            special_tokens=[
                {"id": role, "ids": values, "tokens": [self.token(id_) for id_ in values]}
                for role, values in ids.items()
                if values
            ],
        )

    def only_added(self, ids: np.ndarray) -> np.ndarray:
        """Those of some token ids that are of special or other added tokens."""
        return ids[np.isin(ids, list(self._backend.get_added_tokens_decoder()))]

    @functools.cached_property
    def _guarded_names(self) -> list[str]:
        """Names of added tokens; runs of spaces, as vocabularies for code have them, are text."""
        added = self._backend.get_added_tokens_decoder().values()
        return [token.content for token in added if token.content.strip()]

    @functools.cached_property
    def _chat_backend(self) -> tokenizers.Tokenizer:
        """Finds special tokens before it drops the guards, everything else after."""
        text = self.text
        if any(token.normalized for token in self._backend.get_added_tokens_decoder().values()):
            content = json.loads(text)
            for token in content["added_tokens"]:
                token["normalized"] = False
            text = json.dumps(content)
        backend = _backend(text)
        drop = normalizers.Replace(GUARD, "")
        own = backend.normalizer
        backend.normalizer = drop if own is None else normalizers.Sequence([drop, own])
        return backend


class Decoder:
    """Decodes a stream token by token: text comes out once its characters are complete.

    Args:
      tokenizer: the tokenizer that the ids belong to.
      context: tokens before the stream, such as a prompt's, whose text doesn't come out; some
        decoders drop the space of the very first word.
    """

    def __init__(self, tokenizer: Tokenizer, context: Sequence[int] | np.ndarray = ()):
        self._tokenizer = tokenizer
        # The tokens last given out stay as context.
        self._context: list[int] = [int(id_) for id_ in context[-_CONTEXT_TOKENS:]]
        self._pending: list[int] = []
        # Characters of their text that are out.
        self._given = len(tokenizer.decode(self._context))

    def push(self, token: int) -> str:
        """Takes the next token; returns the text that it completes, often none or one word."""
        self._pending.append(token)
        text = self._tokenizer.decode(self._context + self._pending)
        if text.endswith("\ufffd"):  # the last ones may become a character, those before won't
            given = self._give(text[: max(len(text.rstrip("\ufffd")), len(text) - 3)])
            if len(self._pending) >= _MOST_PENDING:
                self._settle(len(text))
            return given
        given = self._give(text)
        if given:
            self._context, self._pending = self._next_context(), []
            self._given = len(self._tokenizer.decode(self._context))
        return given

    def _settle(self, length: int) -> None:
        """Drops tokens whose text, of so many characters in all, was given out long ago.

        Bytes that are no text can go on for ever. Those that can still become a character stay.
        """
        kept = self._pending[-_MOST_PENDING // 2 :]
        left = length - self._given
        self._context, self._pending = [], kept
        self._given = max(len(self._tokenizer.decode(kept)) - left, 0)

    def flush(self) -> str:
        """Returns what is left at the end, an incomplete character as U+FFFD."""
        return self._give(self._tokenizer.decode(self._context + self._pending))

    def _next_context(self) -> list[int]:
        """The tokens last given out, up to one that isn't a byte of SentencePiece's.

        Its decoder takes bytes that stand together for one text, and shows none of its characters
        while the last one is incomplete.
        """
        tokens = self._pending
        while tokens and _BYTE.fullmatch(self._tokenizer.token(tokens[-1]) or ""):
            tokens = tokens[:-1]
        return tokens or self._context or self._pending

    def _give(self, text: str) -> str:
        given = text[self._given :]
        self._given = max(self._given, len(text))
        return given


@dataclasses.dataclass(frozen=True)
class _Ids:
    """What a tokenizer.json says of its special tokens."""

    bos: int | None = None
    eos: int | None = None
    stop: tuple[int, ...] = ()
    adds_bos: bool = True


def _kept_ids(backend: tokenizers.Tokenizer) -> _Ids:
    """What `Tokenizer._keep_ids` wrote, if it did."""
    if not isinstance(backend.post_processor, processors.TemplateProcessing):
        return _Ids()
    state = json.loads(backend.post_processor.__getstate__())
    named = {role: token["ids"] for role, token in state["special_tokens"].items()}
    if "eos" not in named:  # of another program
        return _Ids()
    adds_bos = "SpecialToken" in state["single"][0]
    return _Ids(named["bos"][0], named["eos"][0], tuple(named.get("stop", ())), adds_bos)


def _backend(text: str) -> tokenizers.Tokenizer:
    try:
        backend = tokenizers.Tokenizer.from_str(text)
    except Exception as error:  # the library raises plain Exception
        raise DataError("this is not a tokenizer.json", str(error)) from None
    backend.no_truncation()
    backend.no_padding()
    return backend


@contextlib.contextmanager
def _no_panic() -> Iterator[None]:
    """Turns a panic of the library, such as at a pattern that never comes to an end, into words."""
    try:
        yield
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        raise DataError("the tokenizer can't encode this text", str(error)) from None


def _any_of(characters: Iterable[str]) -> str:
    return f"[{''.join(map(re.escape, sorted(characters)))}]"


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


def byte_characters() -> list[str]:
    """The characters by which byte-level vocabularies write the bytes 0 to 255, in that order.

    Bytes that print in Latin-1 stand for themselves, the others for the characters from 256 on.
    """
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = (byte for byte in range(256) if byte not in printable)
    stand_ins = {byte: 256 + index for index, byte in enumerate(others)}
    return [chr(stand_ins.get(byte, byte)) for byte in range(256)]


_BYTE_OF = {character: byte for byte, character in enumerate(byte_characters())}
