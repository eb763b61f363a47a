from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from bitttt_jax.data import tokenizers as module
from bitttt_jax.data.tokenizers import Decoder, Tokenizer, grouped
from bitttt_jax.errors import DataError


def random_text(seed: int, length: int) -> str:
    """Any characters that UTF-8 has: 1 to 4 bytes, controls, unassigned ones, no surrogates."""
    rng = random.Random(seed)
    limits = rng.choices([0x80, 0x800, 0xD800, 0x110000], k=length)
    codes = (rng.randrange(limit) for limit in limits)
    return "".join(chr(code) for code in codes if not 0xD800 <= code < 0xE000)


def decoded(tokenizer: Tokenizer, ids: list[int]) -> list[str]:
    decoder = Decoder(tokenizer)
    return [*(decoder.push(id_) for id_ in ids), decoder.flush()]


def test_bytes_that_are_no_text_are_not_held_back_for_ever():
    pieces = decoded(Tokenizer.bytes(), [0xFF] * 9)
    assert pieces[3] == "\ufffd" and "".join(pieces) == "\ufffd" * 9


@pytest.mark.parametrize("seed", range(5))
def test_bytes_that_are_no_text_come_as_they_would_at_once(seed: int):
    """Characters among bytes that are none, in runs so long that what was given out is dropped."""
    rng = random.Random(seed)
    parts = [random_text(seed, 3).encode(), b"\xff" * 40, b"\xf0\x9f\x98", b"\x80" * 19]
    data = b"".join(rng.choices(parts, k=12))
    assert "".join(decoded(Tokenizer.bytes(), list(data))) == data.decode(errors="replace")


def test_no_token_takes_longer_than_another():
    """Each looks at a few others only, though no character is ever complete."""
    tokenizer, lengths = Tokenizer.bytes(), []

    class Counting:
        def decode(self, ids: list[int]) -> str:
            lengths.append(len(ids))
            return tokenizer.decode(ids)

    decoder = Decoder(Counting())  # type: ignore[arg-type]
    assert len("".join(decoder.push(0x80) for _ in range(2000))) == 1997
    assert max(lengths) < 30


@pytest.mark.parametrize("kind", ["bytes", "bpe"])
def test_bytes_of_tokens_make_the_text(kind: str, texts: list[str]):
    tokenizer = Tokenizer.bytes() if kind == "bytes" else Tokenizer.train(texts, 320)
    text = texts[0] + "日本語 🎉\n naïve"
    assert b"".join(map(tokenizer.token_bytes, tokenizer.encode(text))) == text.encode()
    assert tokenizer.token_bytes(tokenizer.eos_id) == b""


@pytest.fixture
def bpe(texts: list[str]) -> Tokenizer:
    return Tokenizer.train(texts, 320)


def word_level(path: Path, *names: str) -> Path:
    """A tokenizer.json of whole words written the way of SentencePiece."""
    vocab = {name: index for index, name in enumerate(["<unk>", *names, "▁Hi", "▁the", "re", "!"])}
    backend = tokenizers.Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    backend.enable_truncation(2)
    backend.enable_padding(length=9)
    backend.add_special_tokens(list(names))
    backend.save(str(path))
    return path


def test_byte_ids_are_the_utf8_bytes() -> None:
    tokenizer = Tokenizer.bytes()
    text = "".join(map(chr, range(0x180))) + random_text(0, 200)
    ids = tokenizer.encode(text)
    assert ids.dtype == np.int32
    assert bytes(ids.tolist()) == text.encode()
    assert (tokenizer.vocab_size, tokenizer.eos_id, tokenizer.bos_id) == (257, 256, 256)


@pytest.mark.parametrize("seed", range(5))
def test_round_trip_of_any_text(bpe: Tokenizer, seed: int) -> None:
    text = random_text(seed, 300) + "<|endoftext|> \r\n\t  end "
    for tokenizer in (bpe, Tokenizer.bytes()):
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text
        assert tokenizer.eos_id not in ids


def test_bpe_has_all_bytes_and_learns_pairs(bpe: Tokenizer, texts: list[str]) -> None:
    assert bpe.vocab_size == 320
    assert bpe.token_id("<|endoftext|>") == bpe.eos_id == bpe.bos_id
    assert len(bpe.encode("the cat reads")) < 7
    # Bytes that the training texts lack, such as those of the Cyrillic alphabet, have tokens too.
    assert len(bpe.encode("Жж")) == 4


def test_bpe_stops_when_no_pair_is_left() -> None:
    assert Tokenizer.train(["aab"], 4096).vocab_size < 262


def test_bpe_training_is_deterministic(tmp_path: Path, texts: list[str], bpe: Tokenizer) -> None:
    (tmp_path / "texts.json").write_text(json.dumps(texts))
    script = (
        "import json, sys; from bitttt_jax.data.tokenizers import Tokenizer;"
        "print(Tokenizer.train(json.load(open(sys.argv[1])), 320).fingerprint)"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "texts.json")]
    environment = {
        "PYTHONHASHSEED": "1",
        "RAYON_NUM_THREADS": "1",
        "PYTHONPATH": ":".join(sys.path),
    }
    run = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    assert run.stdout.strip() == bpe.fingerprint
    assert Tokenizer.train(["other words"], 320).fingerprint != bpe.fingerprint


def test_long_texts_in_pieces_give_the_same_tokens(
    monkeypatch: pytest.MonkeyPatch, bpe: Tokenizer, texts: list[str]
) -> None:
    text = "\n".join(texts)
    expected = bpe.encode(text)
    monkeypatch.setattr(module, "_PIECE_CHARS", 100)
    monkeypatch.setattr(module, "_GROUP_CHARS", 250)
    np.testing.assert_array_equal(bpe.encode(text), expected)
    uncuttable = "日" * 1000 + "-" * 1000
    assert bpe.decode(bpe.encode(uncuttable)) == uncuttable


def test_batch_equals_single_texts(bpe: Tokenizer, texts: list[str]) -> None:
    batch = bpe.encode_batch([*texts, ""])
    for text, ids in zip([*texts, ""], batch, strict=True):
        np.testing.assert_array_equal(ids, bpe.encode(text))
    assert batch[-1].shape == (0,)
    assert bpe.encode_batch([]) == []


def test_decode_replaces_incomplete_characters_and_ignores_unknown_ids() -> None:
    tokenizer = Tokenizer.bytes()
    assert tokenizer.decode(np.array([0x41, 0xE6, 0x97, 0x42, 0xFF, 256, 300])) == "A\ufffdB\ufffd"


def test_decoder_gives_whole_characters() -> None:
    tokenizer = Tokenizer.bytes()
    assert decoded(tokenizer, list("a🎉".encode())) == ["a", "", "", "", "🎉", ""]
    assert decoded(tokenizer, [*"é".encode(), 0xE6, 0x97]) == ["", "é", "", "", "\ufffd"]


@pytest.mark.parametrize("seed", range(5))
def test_decoder_pieces_add_up(bpe: Tokenizer, seed: int) -> None:
    rng = random.Random(seed)
    for tokenizer in (Tokenizer.bytes(), bpe):
        ids = rng.choices(range(tokenizer.vocab_size), k=200)
        assert "".join(decoded(tokenizer, ids)) == tokenizer.decode(ids)


def test_decoder_keeps_the_spaces_of_sentencepiece(tmp_path: Path) -> None:
    tokenizer = Tokenizer.load(word_level(tmp_path / "t.json", "<s>", "</s>"))
    words = ["<s>", "▁Hi", "▁the", "re", "<s>", "▁the", "!"]
    ids = [id_ for word in words if (id_ := tokenizer.token_id(word)) is not None]
    assert decoded(tokenizer, ids) == ["", "Hi", " the", "re", "", " the", "!", ""]


@pytest.mark.parametrize(
    ("names", "bos", "eos"),
    [
        ("<s> </s>", "<s>", "</s>"),
        ("<|begin_of_text|> <|end_of_text|> <|eot_id|>", "<|begin_of_text|>", "<|end_of_text|>"),
        ("<|im_end|> <|endoftext|>", "<|endoftext|>", "<|endoftext|>"),
        ("<|im_start|> <|im_end|>", "<|im_end|>", "<|im_end|>"),
    ],
)
def test_document_tokens_of_a_file(tmp_path: Path, names: str, bos: str, eos: str) -> None:
    tokenizer = Tokenizer.load(word_level(tmp_path / "t.json", *names.split()))
    assert tokenizer.bos_id == tokenizer.token_id(bos)
    assert tokenizer.eos_id == tokenizer.token_id(eos)


def test_file_settings_for_length_are_off(tmp_path: Path) -> None:
    tokenizer = Tokenizer.load(word_level(tmp_path / "t.json", "</s>"))
    assert len(tokenizer.encode("Hi the the the")) == 4  # not truncated to 2 or padded to 9


def test_vocab_size_counts_gaps(tmp_path: Path) -> None:
    path = word_level(tmp_path / "t.json", "</s>")
    content = json.loads(path.read_text())
    content["model"]["vocab"]["far"] = 999
    path.write_text(json.dumps(content))
    assert Tokenizer.load(path).vocab_size == 1000


def test_saved_and_loaded(tmp_path: Path, bpe: Tokenizer) -> None:
    path = tmp_path / "tokenizer.json"
    bpe.save(path)
    loaded = Tokenizer.load(path)
    assert loaded.fingerprint == bpe.fingerprint != Tokenizer.bytes().fingerprint
    np.testing.assert_array_equal(loaded.encode("the cat"), bpe.encode("the cat"))
    path.write_text(json.dumps(json.loads(path.read_text()), indent=4))
    assert Tokenizer.load(path).fingerprint == bpe.fingerprint
    assert list(tmp_path.iterdir()) == [path]


def test_unusable_files(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no-such\.json"):
        Tokenizer.load(tmp_path / "no-such.json")
    (tmp_path / "bad.json").write_text("{}")
    with pytest.raises(DataError, match=r"bad\.json: this is not a tokenizer\.json"):
        Tokenizer.load(tmp_path / "bad.json")
    (tmp_path / "binary.json").write_bytes(b"\xff\xfe")
    with pytest.raises(DataError, match=r"binary\.json is not a tokenizer\.json"):
        Tokenizer.load(tmp_path / "binary.json")
    with pytest.raises(DataError, match=r"t.json: the tokenizer has no token that ends a document"):
        Tokenizer.load(word_level(tmp_path / "t.json", "<mask>"))


def test_grouped_closes_a_group_at_the_limit() -> None:
    assert list(grouped([1, 2, 3, 9, 1], lambda n: n, 4)) == [[1, 2, 3], [9], [1]]


def chat_tokenizer(**ids: object) -> Tokenizer:
    """Bytes, a control token `<|end|>` (257), and words and spaces that are found as a whole."""
    backend = tokenizers.Tokenizer.from_str(Tokenizer.bytes().text)
    backend.add_special_tokens(["<|end|>"])
    backend.add_tokens(["<tool>", "    "])
    return Tokenizer(backend.to_str(), **ids)


def test_ids_that_are_given_are_saved(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    given = chat_tokenizer(bos_id=257, eos_id=5, stop_ids=[7, 6], adds_bos=False)
    given.save(path)
    loaded = Tokenizer.load(path)
    for tokenizer in (given, loaded):
        assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.adds_bos) == (257, 5, False)
        assert tokenizer.stop_ids == (5, 6, 7, 256, 257)
    assert loaded.fingerprint == given.fingerprint != chat_tokenizer().fingerprint
    # Other programs read the file too, and see whether documents begin with a token.
    plain = tokenizers.Tokenizer.from_file(str(path))
    assert plain.encode("a").ids == [0x61]
    chat_tokenizer(bos_id=257).save(path)
    assert tokenizers.Tokenizer.from_file(str(path)).encode("a").ids == [257, 0x61]
    assert Tokenizer.load(path).adds_bos


def test_without_ids_the_text_stays_as_it_is() -> None:
    text = json.dumps(json.loads(Tokenizer.bytes().text), indent=3)
    tokenizer = Tokenizer(text)
    assert tokenizer.text == text
    assert (tokenizer.adds_bos, tokenizer.stop_ids) == (True, (256,))


@pytest.mark.parametrize("ids", [{"eos_id": 999}, {"bos_id": -1}, {"stop_ids": [1 << 40]}])
def test_ids_of_no_token(ids: dict[str, object]) -> None:
    with pytest.raises(DataError, match="the tokenizer has no token"):
        chat_tokenizer(**ids)


def test_only_what_a_template_wrote_is_special() -> None:
    tokenizer = chat_tokenizer()
    user = "<|end|><tool> <|en<|end|>d|>    <|end"
    for edges in (False, True):
        guarded = tokenizer.guard(user, edges=edges)
        ids = tokenizer.encode_with_special(f"<|end|>{guarded}|>")[0].tolist()
        spaces = tokenizer.token_id("    ")
        before, after = user.split("    ")
        expected = [257, *before.encode(), spaces, *after.encode(), *b"|>"]
        if not edges:  # a name that the template completes
            expected[-len("<|end|>") :] = [257]
        assert ids == expected
    np.testing.assert_array_equal(tokenizer.encode_with_special("a<|end|>")[0], [0x61, 257])
    assert tokenizer.only_added(np.array([1, 257, 2, 256])).tolist() == [257, 256]


def test_guards_find_names_within_names() -> None:
    backend = tokenizers.Tokenizer.from_str(Tokenizer.bytes().text)
    backend.add_special_tokens(["<a><", "<b>"])
    tokenizer = Tokenizer(backend.to_str())
    guarded = tokenizer.guard("<a><b>")
    assert bytes(tokenizer.encode_with_special(guarded)[0].tolist()) == b"<a><b>"


def test_tokens_are_special_before_text_is_normalised(tmp_path: Path) -> None:
    content = json.loads(chat_tokenizer().text)
    content["normalizer"] = {"type": "Lowercase"}
    for token in content["added_tokens"]:
        token["normalized"] = True
    tokenizer = Tokenizer(json.dumps(content))
    text = "<|end|>" + tokenizer.guard("<|END|><|end|>")
    assert tokenizer.encode_with_special(text)[0].tolist() == [257, *b"<|end|><|end|>"]


def test_decoder_after_a_prompt_keeps_the_first_space(tmp_path: Path) -> None:
    tokenizer = Tokenizer.load(word_level(tmp_path / "t.json", "<s>", "</s>"))
    hi, the = tokenizer.token_id("▁Hi"), tokenizer.token_id("▁the")
    decoder = Decoder(tokenizer, [hi, hi, hi, hi, hi])
    assert decoder.push(the) == " the"


def test_a_pattern_that_never_ends_is_refused(capfd: pytest.CaptureFixture[str]) -> None:
    content = json.loads(Tokenizer.bytes().text)
    pattern = {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated"}
    content["pre_tokenizer"] = pattern | {"invert": False}
    with pytest.raises(DataError, match="the tokenizer can't encode this text"):
        Tokenizer(json.dumps(content)).encode("a" * 60 + "b")


def test_absurd_ids_are_refused() -> None:
    content = json.loads(Tokenizer.bytes().text)
    content["model"]["vocab"]["far"] = 2**32 - 1
    with pytest.raises(DataError, match="has token 4294967295"):
        _ = Tokenizer(json.dumps(content)).vocab_size
