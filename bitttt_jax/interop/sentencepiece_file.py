"""SentencePiece's own files, tokenizer.model, read with its library where that is installed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bitttt_jax.data.tokenizers import Tokenizer
from bitttt_jax.errors import ConfigError, DataError
from bitttt_jax.interop import tokenizer_json

_MOST_BYTES = 1 << 26


def read(path: Path) -> Tokenizer:
    """Reads a tokenizer.model of byte-pair merges, such as Llama 2's.

    Raises:
      ConfigError: the library is missing.
      DataError: the file can't be read, or is of another kind.
    """
    model = _parse(path)
    normalizer, trainer = model.normalizer_spec, model.trainer_spec
    if trainer.model_type != trainer.BPE or normalizer.remove_extra_whitespaces:
        raise DataError(
            f"{path} isn't of byte-pair merges that keep every space",
            "this program reads no other kind of SentencePiece",
            "the model's tokenizer.json",
        )
    if normalizer.precompiled_charsmap:
        raise DataError(f"{path} rewrites characters", fix="the model's tokenizer.json")
    tokens = [piece.piece for piece in model.pieces]
    if len(set(tokens)) < len(tokens) or "" in tokens:
        raise DataError(f"{path} is damaged", "a token is empty or there twice")
    piece_type = type(model.pieces[0])
    special = (piece_type.CONTROL, piece_type.UNKNOWN)
    added = {
        id_: piece.type in special
        for id_, piece in enumerate(model.pieces)
        if piece.type in (*special, piece_type.USER_DEFINED)
    }
    priorities = {
        piece.piece: -piece.score for piece in model.pieces if piece.type == piece_type.NORMAL
    }
    unknown = next(
        (id_ for id_, p in enumerate(model.pieces) if p.type == piece_type.UNKNOWN), None
    )
    text = tokenizer_json.sentence_piece(
        tokens,
        priorities,
        added,
        None if unknown is None else tokens[unknown],
        adds_space=normalizer.add_dummy_prefix,
    )
    ids = {"bos": trainer.bos_id, "eos": trainer.eos_id}
    return Tokenizer(
        text,
        bos_id=ids["bos"] if ids["bos"] >= 0 else None,
        eos_id=ids["eos"] if ids["eos"] >= 0 else None,
        adds_bos=True,
    )


def _parse(path: Path) -> Any:
    try:
        from google.protobuf.message import DecodeError
        from sentencepiece import sentencepiece_model_pb2
    except ImportError:
        raise ConfigError(
            f"{path} is a file of SentencePiece, which isn't installed",
            fix="pip install sentencepiece, or the model's tokenizer.json",
        ) from None
    model = sentencepiece_model_pb2.ModelProto()
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise DataError(f"{path} is too large", f"more than {_MOST_BYTES >> 20} MiB")
        model.ParseFromString(path.read_bytes())
    except OSError as error:
        raise DataError(f"{path} can't be read", error.strerror or str(error)) from None
    except DecodeError:
        raise DataError(f"{path} is neither a rank file nor SentencePiece's") from None
    if not model.pieces:
        raise DataError(f"{path} has no tokens")
    return model
