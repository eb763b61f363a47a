"""Tokenizers of other programs' models: in GGUF metadata, Hugging Face folders and rank files.

Whatever the format, what comes out is a tokenizer.json around the `tokenizers` library, so that a
model encodes text in the same way before and after a conversion.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from bitttt_jax.data.tokenizers import STOP_NAMES, Tokenizer, byte_characters
from bitttt_jax.errors import DataError
from bitttt_jax.interop import sentencepiece_file, tokenizer_json
from bitttt_jax.interop.pre_tokenizers import ALIASES, LLAMA3, PATTERNS

# Far above what vocabularies have; what follows takes time and memory that grow with them.
_MOST_TOKENS = 1 << 20
_MOST_MERGES = 1 << 22
_MOST_TOKEN_CHARS = 1 << 12
_MOST_FILE_BYTES = 1 << 28

_TOKENS_KEY = "tokenizer.ggml.tokens"
_MERGES_KEY = "tokenizer.ggml.merges"
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _BYTE = 1, 2, 3, 4, 6

_LLAMA3_TOKENS = 128_256
_LLAMA3_RANKS = 128_000
_LLAMA3_NAMES = {
    0: "<|begin_of_text|>",
    1: "<|end_of_text|>",
    4: "<|finetune_right_pad_id|>",
    5: "<|step_id|>",
    6: "<|start_header_id|>",
    7: "<|end_header_id|>",
    8: "<|eom_id|>",
    9: "<|eot_id|>",
    10: "<|python_tag|>",
    11: "<|image|>",
}


def from_gguf(metadata: Mapping[str, object]) -> Tokenizer:
    """The tokenizer in a GGUF file's metadata.

    Args:
      metadata: values by key: numbers, booleans, texts, lists of texts, arrays of numbers.

    Raises:
      DataError: a field is missing or wrong, or the kind of tokenizer isn't known here.
    """
    kind = metadata.get("tokenizer.ggml.model")
    if kind not in ("gpt2", "llama"):
        raise DataError(
            f"tokenizer.ggml.model is {kind!r:.99}",
            "this program reads gpt2 (byte-level merges) and llama (SentencePiece)",
        )
    tokens = _tokens(metadata)
    types = _numbers(metadata, "tokenizer.ggml.token_type", len(tokens), "iu")
    added = _added(tokens, types)
    ids = {
        role: _token_id(metadata, f"tokenizer.ggml.{role}_token_id", len(tokens))
        for role in ("bos", "eos", "eot", "eom", "unknown")
    }
    read = _byte_level if kind == "gpt2" else _sentence_piece
    text, adds_bos = read(metadata, tokens, types, added, ids["unknown"])
    try:
        return Tokenizer(
            text,
            bos_id=ids["bos"],
            eos_id=ids["eos"],
            stop_ids=[id_ for id_ in (ids["eot"], ids["eom"]) if id_ is not None],
            adds_bos=_flag(metadata, "tokenizer.ggml.add_bos_token", adds_bos),
        )
    except DataError:
        if kind == "gpt2":
            _check_merges(metadata, set(tokens))
        raise


def from_folder(folder: Path) -> Tokenizer:
    """The tokenizer of a Hugging Face folder.

    It is tokenizer.json, or tokenizer.model: a rank file of Llama 3, or SentencePiece's. Which
    tokens begin and end documents and replies stands in tokenizer_config.json,
    special_tokens_map.json, config.json and generation_config.json.

    Raises:
      DataError: there is none, or a file is damaged.
    """
    path, model = folder / "tokenizer.json", folder / "tokenizer.model"
    adds_bos = True
    if path.is_file():
        tokenizer = Tokenizer.load(path)
        adds_bos = _checked_adds_bos(path, tokenizer)
    elif not model.is_file():
        raise DataError(
            f"{folder} has no tokenizer",
            "neither tokenizer.json nor tokenizer.model is in it",
            "copying them from where the model comes from",
        )
    elif _is_rank_file(model):
        tokenizer = from_rank_file(model)
    else:
        tokenizer = sentencepiece_file.read(model)
    return _with_ids(tokenizer, folder, adds_bos)


def from_rank_file(path: Path) -> Tokenizer:
    """The tokenizer of a Llama 3 rank file: lines of a token in Base64 and its rank.

    The 256 special tokens aren't in the file; they have the names of Llama 3.1.

    Raises:
      DataError: it can't be read, or isn't Llama 3's.
    """
    ranks = _read_ranks(path)
    characters = byte_characters()
    tokens = ["".join(characters[byte] for byte in token) for token in ranks]
    reserved = iter(range(256))
    tokens += [
        _LLAMA3_NAMES.get(index) or f"<|reserved_special_token_{next(reserved)}|>"
        for index in range(_LLAMA3_TOKENS - _LLAMA3_RANKS)
    ]
    priorities = {token: rank for rank, token in enumerate(tokens[:_LLAMA3_RANKS])}
    text = tokenizer_json.byte_level(
        tokens,
        tokenizer_json.merges_by_priority(priorities, tokens),
        dict.fromkeys(range(_LLAMA3_RANKS, _LLAMA3_TOKENS), True),
        [LLAMA3],
        ignore_merges=True,
    )
    return Tokenizer(text, adds_bos=True)


def read_config(path: Path) -> dict[str, Any]:
    """A JSON object of a Hugging Face folder; an empty one where there is no such file.

    Raises:
      DataError: it can't be read, or holds something else.
    """
    if not path.is_file():
        return {}
    try:
        content = json.loads(read_bytes(path).decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is damaged", str(error)) from None
    if not isinstance(content, dict):
        raise DataError(
            f"{path} is damaged", f"a JSON object, not {type(content).__name__}, is due"
        )
    return content


def read_bytes(path: Path) -> bytes:
    """A file of a model's folder.

    Raises:
      DataError: it can't be read, or is too large for what it is.
    """
    try:
        if path.stat().st_size > _MOST_FILE_BYTES:
            raise DataError(f"{path} is too large", f"more than {_MOST_FILE_BYTES >> 20} MiB")
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} can't be read", error.strerror or str(error)) from None


def _byte_level(
    metadata: Mapping[str, object],
    tokens: list[str],
    types: np.ndarray,
    added: dict[int, bool],
    unknown: int | None,
) -> tuple[str, bool]:
    """The tokenizer.json of byte-level merges, and whether documents begin with bos."""
    del types, unknown
    key = "tokenizer.ggml.pre"
    # Files from before the field had been thought of; BitNet's official one is among them.
    pre = metadata.get(key, "llama-bpe" if len(tokens) == _LLAMA3_TOKENS else "default")
    name = ALIASES.get(str(pre), pre)
    if not isinstance(name, str) or name not in PATTERNS:
        known = " ".join(sorted({*PATTERNS, *ALIASES}))
        raise DataError(f"{key} is {pre!r:.99}", f"this program knows {known}")
    is_llama3 = name == "llama-bpe"
    text = tokenizer_json.byte_level(
        tokens,
        _texts(metadata, _MERGES_KEY, _MOST_MERGES),
        added,
        PATTERNS[name],
        ignore_merges=is_llama3,
    )
    return text, is_llama3


def _sentence_piece(
    metadata: Mapping[str, object],
    tokens: list[str],
    types: np.ndarray,
    added: dict[int, bool],
    unknown: int | None,
) -> tuple[str, bool]:
    """The tokenizer.json of SentencePiece's merges, and whether documents begin with bos."""
    if metadata.get("tokenizer.ggml.scores") is None:
        raise _fault(metadata, "tokenizer.ggml.scores", f"{len(tokens)} numbers")
    scores = _numbers(metadata, "tokenizer.ggml.scores", len(tokens), "f")
    # What is found as a whole, or stands for a byte, is never put together from characters.
    priorities = {
        token: -float(scores[id_])
        for id_, token in enumerate(tokens)
        if id_ not in added and types[id_] != _BYTE
    }
    text = tokenizer_json.sentence_piece(
        tokens,
        priorities,
        added,
        None if unknown is None else tokens[unknown],
        adds_space=_flag(metadata, "tokenizer.ggml.add_space_prefix", True),
    )
    return text, True


def _tokens(metadata: Mapping[str, object]) -> list[str]:
    tokens = _texts(metadata, _TOKENS_KEY, _MOST_TOKENS)
    tokens = [token or f"[EMPTY_{id_}]" for id_, token in enumerate(tokens)]
    if not tokens:
        raise DataError(f"{_TOKENS_KEY} is empty")
    longest = max(tokens, key=len)
    if len(longest) > _MOST_TOKEN_CHARS:
        raise DataError(f"{_TOKENS_KEY} has a token of {len(longest)} characters", "too many")
    if len(set(tokens)) < len(tokens):
        first: dict[str, int] = {}
        twice = next(
            token for id_, token in enumerate(tokens) if first.setdefault(token, id_) != id_
        )
        raise DataError(f"{_TOKENS_KEY} has the token {twice!r:.99} twice")
    return tokens


def _added(tokens: list[str], types: np.ndarray) -> dict[int, bool]:
    """Ids of the tokens that are found as a whole, and whether they are special."""
    special = {*np.flatnonzero((types == _CONTROL) | (types == _UNKNOWN)).tolist()}
    # Some files have these as ordinary text, which no reply would stop at. Where they may be just
    # that, such as `</s>`, the type is believed.
    special |= {
        id_
        for id_, token in enumerate(tokens)
        if token in STOP_NAMES and (types[id_] != _NORMAL or token.startswith("<|"))
    }
    users = {*np.flatnonzero(types == _USER_DEFINED).tolist()}
    return {id_: id_ in special for id_ in sorted(special | users)}


def _check_merges(metadata: Mapping[str, object], tokens: set[str]) -> None:
    """Finds the merge that the library refused."""
    for merge in _texts(metadata, _MERGES_KEY, _MOST_MERGES):
        parts = merge.split(" ")
        if len(parts) != 2 or not {*parts, "".join(parts)} <= tokens:
            why = "a merge is of two tokens, with a space between them, into a third one"
            raise DataError(f"{_MERGES_KEY} has {merge!r:.99}", why)


def _texts(metadata: Mapping[str, object], key: str, most: int) -> list[str]:
    value = metadata.get(key)
    if not isinstance(value, (list, tuple)):
        raise _fault(metadata, key, "a list of texts")
    if len(value) > most:
        raise DataError(f"{key} has {len(value)} entries", f"at most {most} are read")
    if not all(isinstance(item, str) for item in value):
        raise _fault(metadata, key, "a list of texts")
    return list(value)


def _numbers(metadata: Mapping[str, object], key: str, count: int, kinds: str) -> np.ndarray:
    """An array of a number for each token; zeros where the field is missing."""
    value = metadata.get(key)
    if value is None:
        return np.zeros(count, np.int32)
    if not isinstance(value, (list, tuple, np.ndarray)) or len(value) != count:
        raise _fault(metadata, key, f"{count} numbers, one a token")
    array = np.asarray(value)
    if array.dtype.kind not in kinds or array.ndim != 1 or not np.all(np.isfinite(array)):
        raise _fault(metadata, key, f"{count} numbers, one a token")
    return array


def _token_id(metadata: Mapping[str, object], key: str, count: int) -> int | None:
    value = metadata.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise _fault(metadata, key, "a whole number")
    if not 0 <= value < count:
        raise DataError(f"{key} is {value}", f"the vocabulary has {count} tokens")
    return int(value)


def _flag(metadata: Mapping[str, object], key: str, default: bool) -> bool:
    value = metadata.get(key, default)
    if not isinstance(value, (bool, np.bool_)):
        raise _fault(metadata, key, "true or false")
    return bool(value)


def _fault(metadata: Mapping[str, object], key: str, due: str) -> DataError:
    value = metadata.get(key)
    if value is None:
        return DataError(f"{key} is missing", f"it is due as {due}")
    size = f" of {len(value)}" if isinstance(value, (list, tuple, np.ndarray)) else ""
    return DataError(f"{key} is {type(value).__name__}{size}", f"{due} is due")


def _is_rank_file(path: Path) -> bool:
    first = read_bytes(path)[:4096].partition(b"\n")[0]
    return re.fullmatch(rb"[A-Za-z0-9+/]+=* \d+\r?", first) is not None


def _read_ranks(path: Path) -> list[bytes]:
    """Tokens by rank."""
    ranks: dict[int, bytes] = {}
    for number, line in enumerate(read_bytes(path).splitlines(), 1):
        try:
            token, rank = line.split()
            ranks[int(rank)] = base64.b64decode(token, validate=True)
        except ValueError:
            why = "a token in Base64 and its rank are due"
            raise DataError(f"{path}: line {number} is {line!r:.99}", why) from None
    tokens = [ranks[rank] for rank in sorted(ranks)]
    if sorted(ranks) != list(range(_LLAMA3_RANKS)) or len({*tokens}) < _LLAMA3_RANKS:
        raise DataError(
            f"{path} isn't a Llama 3 rank file",
            f"it has {len({*tokens})} tokens, not {_LLAMA3_RANKS} with a rank each",
            "the model's tokenizer.json",
        )
    if max(map(len, tokens)) > _MOST_TOKEN_CHARS:
        raise DataError(f"{path} isn't a Llama 3 rank file", "it has a token that is too long")
    return tokens


def _checked_adds_bos(path: Path, tokenizer: Tokenizer) -> bool:
    """Whether a tokenizer.json says that documents begin with a special token.

    Raises:
      DataError: its added tokens don't have the ids that it gives them; the library wouldn't say.
    """
    content = read_config(path)
    for token in content.get("added_tokens") or []:
        if tokenizer.token_id(token["content"]) != token["id"]:
            name, id_ = token["content"], token["id"]
            raise DataError(f"{path} gives {name!r:.99} the id {id_}", "which it can't have")
    outer = content.get("post_processor") or {}
    single = [step["single"] for step in [outer, *outer.get("processors", [])] if "single" in step]
    return bool(single and single[0] and "SpecialToken" in single[0][0])


def _with_ids(tokenizer: Tokenizer, folder: Path, adds_bos: bool) -> Tokenizer:
    """The tokenizer with the ids that the other files of its folder give."""
    names = ("special_tokens_map.json", "tokenizer_config.json")
    config: dict[str, Any] = {}
    for path in (folder / name for name in names):
        config |= {key: value for key, value in read_config(path).items() if value is not None}
    ids = {role: _named(tokenizer, folder, config, f"{role}_token") for role in ("bos", "eos")}
    numbers = [
        _ids(folder / name, read_config(folder / name))
        for name in ("generation_config.json", "config.json")
    ]
    stops = numbers[0] or numbers[1]
    explicit = config.get("add_bos_token")
    return Tokenizer(
        tokenizer.text,
        bos_id=ids["bos"],
        eos_id=next(iter(numbers[1] or stops), None) if ids["eos"] is None else ids["eos"],
        stop_ids=stops,
        adds_bos=explicit if isinstance(explicit, bool) else adds_bos,
    )


def _named(tokenizer: Tokenizer, folder: Path, config: dict[str, Any], field: str) -> int | None:
    """The id of the token that a field names, as its text or with its properties."""
    value = config.get(field)
    name = value.get("content") if isinstance(value, dict) else value
    if name is None:
        return None
    id_ = tokenizer.token_id(name) if isinstance(name, str) else None
    if id_ is None:
        raise DataError(f"{folder}: {field} is {name!r:.99}", "the tokenizer has no such token")
    return id_


def _ids(path: Path, config: dict[str, Any]) -> list[int]:
    """`eos_token_id`, which is one number or several."""
    value = config.get("eos_token_id")
    ids = [] if value is None else value if isinstance(value, list) else [value]
    if not all(type(id_) is int and id_ >= 0 for id_ in ids):
        raise DataError(f"{path}: eos_token_id is {value!r:.99}", "token numbers are due")
    return ids
