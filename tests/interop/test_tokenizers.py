from __future__ import annotations

import base64
import itertools
import json
import random
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers as library

from bitttt_jax.data.tokenizers import Decoder, Tokenizer
from bitttt_jax.errors import ConfigError, DataError
from bitttt_jax.interop import tokenizers
from bitttt_jax.interop.pre_tokenizers import ALIASES, PATTERNS
from tests.interop import vocabularies
from tests.interop.vocabularies import CONTROL, NORMAL, USER_DEFINED


def with_tokens(metadata: dict[str, object], *added: tuple[str, int]) -> dict[str, object]:
    """The metadata with further tokens of given types at the end."""
    tokens, types = metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.token_type"]
    assert isinstance(tokens, list) and isinstance(types, np.ndarray)
    changed = metadata | {
        "tokenizer.ggml.tokens": [*tokens, *(name for name, _ in added)],
        "tokenizer.ggml.token_type": np.array([*types, *(kind for _, kind in added)], np.int32),
    }
    if isinstance(scores := metadata.get("tokenizer.ggml.scores"), np.ndarray):
        changed["tokenizer.ggml.scores"] = np.append(scores, np.zeros(len(added), np.float32))
    return changed


def test_byte_level_metadata_encode_like_the_tokenizer_they_are_of() -> None:
    trained, metadata = vocabularies.byte_level()
    read = tokenizers.from_gguf(metadata)
    for text in vocabularies.sample_texts(1, 50):
        np.testing.assert_array_equal(read.encode(text), trained.encode(text))
        assert read.decode(read.encode(text)) == text
    assert (read.eos_id, read.bos_id, read.adds_bos) == (trained.eos_id, trained.eos_id, False)


@pytest.mark.parametrize(
    ("pre", "pieces"),
    [
        ("gpt-2", ["It", "'s", " 12345", "!?", "\n\n", " I", "'", "LL", "  ", " x"]),
        ("llama-bpe", ["It", "'s", " ", "123", "45", "!?\n\n", " I", "'LL", "  ", " x"]),
        ("falcon3", ["It", "'s", " ", "123", "45", "!?\n\n", " I", "'LL", "  ", " x"]),
        ("qwen2", ["It", "'s", " ", *"12345", "!?\n\n", " I", "'LL", "  ", " x"]),
        ("smollm", ["It", "'s", " ", *"12345", "!?", "\n\n", " I", "'", "LL", "  ", " x"]),
        (
            "falcon",
            ["It", "'", "s", " ", "123", "45", "!?", "\n\n", " I", "'", "LL", "  ", " x"],
        ),
        (
            "default",
            ["It", "'", "s", " ", "123", "45", "!?", "\n\n", " I", "'", "LL", "  ", " x"],
        ),
    ],
)
def test_patterns_cut_as_their_names_say(pre: str, pieces: list[str]) -> None:
    _, metadata = vocabularies.byte_level()
    backend = library.Tokenizer.from_str(
        tokenizers.from_gguf(metadata | {"tokenizer.ggml.pre": pre}).text
    )
    decode = library.decoders.ByteLevel().decode
    cut = backend.pre_tokenizer.pre_tokenize_str("It's 12345!?\n\n I'LL   x")
    assert [decode([piece]) for piece, _ in cut] == pieces


def test_every_pattern_is_one() -> None:
    _, metadata = vocabularies.byte_level()
    for pre in (*PATTERNS, *ALIASES):
        read = tokenizers.from_gguf(metadata | {"tokenizer.ggml.pre": pre})
        for text in vocabularies.sample_texts(2, 5):
            assert read.decode(read.encode(text)) == text


def test_the_pattern_of_files_that_name_none() -> None:
    _, metadata = vocabularies.byte_level()
    del metadata["tokenizer.ggml.pre"]
    default = tokenizers.from_gguf(metadata)
    named = tokenizers.from_gguf(metadata | {"tokenizer.ggml.pre": "default"})
    assert default.fingerprint == named.fingerprint
    tokens = metadata["tokenizer.ggml.tokens"]
    assert isinstance(tokens, list)
    fillers = [(f"filler {index}", NORMAL) for index in range(128_256 - len(tokens))]
    llama3 = with_tokens(metadata, *fillers)
    read = tokenizers.from_gguf(llama3)
    named = tokenizers.from_gguf(llama3 | {"tokenizer.ggml.pre": "llama-bpe"})
    assert read.fingerprint == named.fingerprint
    assert read.adds_bos


def test_a_piece_that_is_a_token_stays_whole_for_llama_3() -> None:
    _, metadata = vocabularies.byte_level()
    metadata = with_tokens(metadata, ("zebra", NORMAL))
    whole = {
        pre: len(tokenizers.from_gguf(metadata | {"tokenizer.ggml.pre": pre}).encode("zebra"))
        for pre in ("llama-bpe", "gpt-2")
    }
    assert whole["llama-bpe"] == 1 < whole["gpt-2"]


@pytest.mark.parametrize("seed", range(8))
def test_sentence_piece_merges_by_score(seed: int) -> None:
    metadata: Mapping[str, Any] = vocabularies.sentence_piece(seed)
    read = tokenizers.from_gguf(metadata)
    tokens, scores = metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.scores"]
    by_token = dict(zip(tokens[259:], scores[259:].tolist(), strict=True))
    for text in vocabularies.sample_texts(seed + 100, 30):
        pieces = vocabularies.merge_by_score([*("▁" + text.replace(" ", "▁"))], by_token)
        expected = []
        for piece in pieces:
            data = [f"<0x{byte:02X}>" for byte in piece.encode()]
            expected += [piece] if piece in by_token else data
        assert [read.token(id_) for id_ in read.encode(text).tolist()] == expected
        assert read.decode(read.encode(text)) == text
    assert read.encode("").size == 0
    assert (read.bos_id, read.eos_id, read.adds_bos, read.stop_ids) == (1, 2, True, (2,))


def test_sentence_piece_with_tokens_across_words() -> None:
    metadata = with_tokens(vocabularies.sentence_piece(), ("the▁cat", NORMAL))
    scores = metadata["tokenizer.ggml.scores"]
    assert isinstance(scores, np.ndarray)
    for name in ("th", "the", "▁c", "▁ca", "▁cat"):
        if name not in metadata["tokenizer.ggml.tokens"]:  # type: ignore[operator]
            metadata = with_tokens(metadata, (name, NORMAL))
    read = tokenizers.from_gguf(metadata | {"tokenizer.ggml.add_space_prefix": False})
    assert read.encode("the cat").tolist() == [read.token_id("the▁cat")]
    assert read.decode(read.encode(" the cat")) == " the cat"


def test_sentence_piece_streams_with_its_spaces() -> None:
    read = tokenizers.from_gguf(vocabularies.sentence_piece())
    ids = read.encode("the cat reads 日本語🎉  x").tolist()
    decoder = Decoder(read, read.encode("prompt"))
    text = "".join(decoder.push(id_) for id_ in ids) + decoder.flush()
    assert text == " the cat reads 日本語🎉  x"


@pytest.mark.parametrize("kind", ["byte_level", "sentence_piece"])
def test_control_tokens_never_come_from_text(kind: str) -> None:
    metadata = vocabularies.byte_level()[1] if kind == "byte_level" else None
    metadata = metadata or vocabularies.sentence_piece()
    added = [("<|im_end|>", CONTROL), ("<tool>", USER_DEFINED), ("<|eot_id|>", NORMAL)]
    read = tokenizers.from_gguf(with_tokens(metadata, *added))
    end, tool, turn = (read.token_id(name) for name, _ in added)
    text = "a<|im_end|><tool><s></s><unk><0x41><|eot_id|><|endoftext|>"
    ids = read.encode(text).tolist()
    assert tool in ids
    assert not {end, turn, read.bos_id, read.eos_id, read.token_id("<unk>")} & {*ids}
    if kind == "byte_level":  # SentencePiece puts a space behind such tokens
        assert read.decode(ids) == text
    assert {end, turn, read.eos_id} == {*read.stop_ids}
    assert read.encode_with_special("<|im_end|>")[0].tolist() == [end]


def test_ordinary_text_with_the_name_of_an_end_ends_nothing() -> None:
    read = tokenizers.from_gguf(with_tokens(vocabularies.byte_level()[1], ("</s>", NORMAL)))
    assert read.token_id("</s>") not in read.stop_ids


def test_ids_and_flags_of_the_metadata(tmp_path: Path) -> None:
    _, metadata = vocabularies.byte_level()
    ids = {"bos": 3, "eos": 4, "eot": 5, "eom": 6}
    metadata |= {f"tokenizer.ggml.{role}_token_id": id_ for role, id_ in ids.items()}
    read = tokenizers.from_gguf(metadata | {"tokenizer.ggml.add_bos_token": True})
    read.save(tmp_path / "tokenizer.json")
    for tokenizer in (read, Tokenizer.load(tmp_path / "tokenizer.json")):
        assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.adds_bos) == (3, 4, True)
        assert {4, 5, 6} <= {*tokenizer.stop_ids}


class Endless(list[str]):
    """A list that claims more than it has, as a lazy one of a hostile file could."""

    def __len__(self) -> int:
        return 1 << 30


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("model", "bert"),
        ("model", 7),
        ("model", None),
        ("pre", "never heard of"),
        ("pre", ["gpt-2"]),
        ("tokens", None),
        ("tokens", []),
        ("tokens", "abc"),
        ("tokens", ["a", 1]),
        ("tokens", ["a", "b", "a"]),
        ("tokens", ["a" * 5000]),
        ("tokens", Endless()),
        ("token_type", [1, 2]),
        ("token_type", "11"),
        ("token_type", np.ones((400, 1))),
        ("merges", None),
        ("merges", [1]),
        ("merges", ["a"]),
        ("merges", ["a b c"]),
        ("merges", ["a nowhere"]),
        ("merges", Endless()),
        ("eos_token_id", 400),
        ("eos_token_id", -1),
        ("eos_token_id", "4"),
        ("bos_token_id", True),
        ("eot_token_id", 1 << 40),
        ("add_bos_token", 1),
    ],
)
def test_hostile_byte_level_metadata(key: str, value: object) -> None:
    _, metadata = vocabularies.byte_level()
    name = f"tokenizer.ggml.{key}"
    metadata |= {name: value}
    if value is None:
        del metadata[name]
    started = time.monotonic()
    with pytest.raises(DataError, match=name):
        tokenizers.from_gguf(metadata)
    assert time.monotonic() - started < 60


@pytest.mark.parametrize("value", ["x", [1.0], None, np.full(400, np.nan)])
def test_hostile_scores(value: object) -> None:
    metadata = vocabularies.sentence_piece()
    tokens = metadata["tokenizer.ggml.tokens"]
    assert isinstance(tokens, list)
    if isinstance(value, np.ndarray):
        value = np.full(len(tokens), np.nan)
    with pytest.raises(DataError, match=r"tokenizer\.ggml\.scores"):
        tokenizers.from_gguf(metadata | {"tokenizer.ggml.scores": value})


def rank_lines(seed: int = 0) -> list[bytes]:
    """128,000 tokens with ranks: bytes, random pairs of tokens before them, then pairs of bytes."""
    rng = random.Random(seed)
    tokens = [bytes([byte]) for byte in range(256)]
    seen = {*tokens}
    for _ in range(3000):
        pair = rng.choice(tokens[32:]) + rng.choice(tokens[32:])
        if pair not in seen and len(pair) < 12:
            seen.add(pair)
            tokens.append(pair)
    triples = (bytes([a, b, c]) for a in range(255, 0, -1) for b in range(256) for c in (0, 255))
    tokens += [token for token in triples if token not in seen][: 128_000 - len(tokens)]
    return [base64.b64encode(token) + b" %d" % rank for rank, token in enumerate(tokens)]


def test_rank_files_merge_by_rank(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.model"
    lines = rank_lines()
    path.write_bytes(b"\n".join(lines))
    read = tokenizers.from_folder(tmp_path)
    ranks = {base64.b64decode(line.split()[0]): rank for rank, line in enumerate(lines)}
    decoded = {rank: token for token, rank in ranks.items()}
    rng = random.Random(1)
    # Letters only: the pattern leaves them in one piece.
    for length in range(1, 120):
        word = "".join(rng.choices("abcdefghijklmnopqrstuvwxyzéß", k=length))
        expected = [word.encode()[i : i + 1] for i in range(len(word.encode()))]
        if word.encode() in ranks:
            expected = [word.encode()]
        while True:
            joined = [ranks.get(a + b, 1 << 30) for a, b in itertools.pairwise(expected)]
            if not joined or (best := min(joined)) == 1 << 30:
                break
            at = joined.index(best)
            expected[at : at + 2] = [expected[at] + expected[at + 1]]
        assert [decoded[id_] for id_ in read.encode(word).tolist()] == expected
    names = ("<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>", "<|reserved_special_token_0|>")
    ids = [read.token_id(name) for name in names]
    assert ids == [128_000, 128_001, 128_009, 128_002]
    assert (read.bos_id, read.eos_id, read.adds_bos) == (128_000, 128_001, True)
    assert read.stop_ids == (128_001, 128_008, 128_009)
    assert read.vocab_size == 128_256


@pytest.mark.parametrize(
    "damage",
    [
        lambda lines: lines[:-1],
        lambda lines: [*lines[:-1], lines[0]],
        lambda lines: [*lines[:-1], b"YWFh"],
        lambda lines: [*lines[:-1], b"Y!Fh 127999"],
        lambda lines: [*lines[:-1], b"YWFh -1"],
    ],
)
def test_damaged_rank_files(tmp_path: Path, damage: Any) -> None:
    path = tmp_path / "tokenizer.model"
    path.write_bytes(b"\n".join(damage(rank_lines())))
    with pytest.raises(DataError, match=r"tokenizer\.model"):
        tokenizers.from_rank_file(path)


def test_tokens_of_absurd_length(tmp_path: Path) -> None:
    long = with_tokens(vocabularies.sentence_piece(), ("a" * 1000, NORMAL))
    with pytest.raises(DataError, match="a token of 1000 characters"):
        tokenizers.from_gguf(long)
    lines = [*rank_lines()[:-1], base64.b64encode(b"a" * 1000) + b" 127999"]
    (tmp_path / "ranks").write_bytes(b"\n".join(lines))
    with pytest.raises(DataError, match="a token of 1000 characters"):
        tokenizers.from_rank_file(tmp_path / "ranks")


def write(folder: Path, **files: object) -> None:
    """JSON files of a folder, by their names without `.json`."""
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a tokenizer.json of bytes and three special tokens, from 256 on."""
    backend = library.Tokenizer.from_str(Tokenizer.bytes().text)
    backend.add_special_tokens(["<|begin|>", "<|im_end|>", "<|turn|>"])
    backend.save(str(tmp_path / "tokenizer.json"))
    return tmp_path


def test_folder_without_other_files(folder: Path) -> None:
    read = tokenizers.from_folder(folder)
    assert (read.bos_id, read.eos_id, read.adds_bos) == (256, 256, False)
    assert read.stop_ids == (256, 258)


def test_folder_names_its_tokens(folder: Path) -> None:
    write(
        folder,
        special_tokens_map={"bos_token": "<|turn|>", "eos_token": "<|endoftext|>"},
        tokenizer_config={"bos_token": {"content": "<|begin|>"}, "add_bos_token": True},
        generation_config={"eos_token_id": [258, 259]},
        config={"eos_token_id": 256},
    )
    read = tokenizers.from_folder(folder)
    assert (read.bos_id, read.eos_id, read.adds_bos) == (257, 256, True)
    assert read.stop_ids == (256, 258, 259)


def test_folder_that_adds_a_first_token_in_its_tokenizer(folder: Path) -> None:
    backend = library.Tokenizer.from_file(str(folder / "tokenizer.json"))
    template = library.processors.TemplateProcessing(
        single="<|begin|> $A", special_tokens=[("<|begin|>", 257)]
    )
    backend.post_processor = library.processors.Sequence([library.processors.ByteLevel(), template])
    backend.save(str(folder / "tokenizer.json"))
    write(folder, tokenizer_config={"bos_token": "<|begin|>", "eos_token": "<|im_end|>"})
    read = tokenizers.from_folder(folder)
    assert (read.bos_id, read.eos_id, read.adds_bos) == (257, 258, True)
    write(folder, tokenizer_config={"bos_token": "<|begin|>", "add_bos_token": False})
    assert not tokenizers.from_folder(folder).adds_bos


def test_folder_whose_numbers_name_the_end(folder: Path) -> None:
    write(folder, config={"eos_token_id": 259, "bos_token_id": 257})
    read = tokenizers.from_folder(folder)
    assert (read.eos_id, read.stop_ids) == (259, (256, 258, 259))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("tokenizer_config", [], "tokenizer_config.json is damaged"),
        ("tokenizer_config", {"eos_token": "<nowhere>"}, "eos_token is '<nowhere>'"),
        ("tokenizer_config", {"bos_token": {"content": 7}}, "bos_token is 7"),
        ("generation_config", {"eos_token_id": "2"}, "eos_token_id is '2'"),
        ("generation_config", {"eos_token_id": [2, -1]}, "eos_token_id is"),
        ("generation_config", {"eos_token_id": [9999]}, "has no token 9999"),
    ],
)
def test_folder_with_wrong_files(folder: Path, name: str, content: object, message: str) -> None:
    write(folder, **{name: content})
    with pytest.raises(DataError, match=message):
        tokenizers.from_folder(folder)


def test_folder_with_files_that_are_no_json(folder: Path) -> None:
    (folder / "tokenizer_config.json").write_text("[" * 100_000)
    with pytest.raises(DataError, match=r"tokenizer_config\.json is damaged"):
        tokenizers.from_folder(folder)


def test_added_tokens_that_can_not_have_their_ids(folder: Path) -> None:
    content = json.loads((folder / "tokenizer.json").read_text())
    content["added_tokens"][1]["id"] = 999
    write(folder, tokenizer=content)
    with pytest.raises(DataError, match=r"tokenizer\.json gives '<\|begin\|>' the id 999"):
        tokenizers.from_folder(folder)


def test_folders_without_a_tokenizer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match="has no tokenizer"):
        tokenizers.from_folder(tmp_path)
    (tmp_path / "tokenizer.model").write_bytes(b"\x0a\x0e\x0a\x05<unk>")
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    with pytest.raises(ConfigError, match="pip install sentencepiece"):
        tokenizers.from_folder(tmp_path)
