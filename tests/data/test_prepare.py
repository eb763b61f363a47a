from __future__ import annotations

import collections
import dataclasses
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from tokenizers import models, pre_tokenizers

from bitttt_jax.config import DataConfig, SourceConfig, TokenizerConfig
from bitttt_jax.data.manifest import Manifest, Split
from bitttt_jax.data.prepare import prepare
from bitttt_jax.data.shards import TokenDataset, load_tokenizer, verify
from bitttt_jax.data.tokenizers import Tokenizer
from bitttt_jax.errors import ConfigError, DataError

MakeConfig = Callable[..., DataConfig]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def documents(folder: Path, split: Split) -> list[str]:
    """The texts of a split, decoded."""
    tokenizer = load_tokenizer(folder)
    return [
        tokenizer.decode(tokens[1:])
        for source in TokenDataset.open(folder, split).sources
        for shard in source.shards
        for tokens in np.split(shard.tokens, shard.offsets[1:-1].astype(int))
    ]


def never(activity: str, done: int, total: int) -> None:
    raise AssertionError(f"started to {activity}")


@pytest.mark.parametrize(
    "tokenizer", [TokenizerConfig(), TokenizerConfig(kind="bpe", vocab_size=300)]
)
def test_same_input_gives_same_bytes(
    tmp_path: Path, corpus: Path, data_config: MakeConfig, tokenizer: TokenizerConfig
) -> None:
    config = data_config(corpus, tokenizer=tokenizer)
    for name in ("a", "b"):
        prepare(config, tmp_path / name)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    verify(tmp_path / "a")


def test_every_document_is_in_one_split(
    tmp_path: Path, corpus: Path, texts: list[str], data_config: MakeConfig
) -> None:
    manifest = prepare(data_config(corpus), tmp_path / "tokens")
    train = documents(tmp_path / "tokens", "train")
    validation = documents(tmp_path / "tokens", "validation")
    assert sorted(train + validation) == sorted(texts)
    assert 4 <= len(validation) <= 20  # 12 expected
    for part, found in zip(manifest.parts, (train, validation), strict=True):
        assert part.documents == len(found)
        assert part.text_bytes == sum(len(text.encode()) for text in found)
    assert manifest == Manifest.load(tmp_path / "tokens")


def test_split_depends_on_nothing_but_the_text(
    tmp_path: Path, corpus: Path, texts: list[str], data_config: MakeConfig
) -> None:
    prepare(data_config(corpus), tmp_path / "a")
    lines = tmp_path / "all.jsonl"
    lines.write_text("".join(json.dumps({"id": 0, "text": t}) + "\n" for t in reversed(texts)))
    bpe = TokenizerConfig(kind="bpe", vocab_size=300)
    prepare(data_config(lines, tokenizer=bpe), tmp_path / "b")
    # A larger share holds out the same documents and more.
    prepare(data_config(corpus, validation_fraction=0.5), tmp_path / "c")
    a, b, c = (set(documents(tmp_path / name, "validation")) for name in "abc")
    assert a == b < c


def test_bpe_learns_from_training_documents_only(
    tmp_path: Path, corpus: Path, texts: list[str], data_config: MakeConfig
) -> None:
    bpe = TokenizerConfig(kind="bpe", vocab_size=400)
    manifest = prepare(data_config(corpus, tokenizer=bpe), tmp_path / "tokens")
    train = documents(tmp_path / "tokens", "train")
    assert manifest.tokenizer_fingerprint == Tokenizer.train(train, 400).fingerprint
    assert manifest.tokenizer_fingerprint != Tokenizer.train(texts, 400).fingerprint


def test_large_vocabulary_is_stored_in_32_bits(tmp_path: Path, data_config: MakeConfig) -> None:
    vocab = {"</s>": 0, "<unk>": 1, "low": 2, "high": 70_000}
    backend = tokenizers.Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.save(str(tmp_path / "t.json"))
    (tmp_path / "a.txt").write_text("high low high")
    tokenizer = TokenizerConfig(kind="file", path=str(tmp_path / "t.json"))
    config = data_config(tmp_path / "a.txt", tokenizer=tokenizer, validation_fraction=0.0)
    assert prepare(config, tmp_path / "tokens").dtype == "uint32"
    (shard,) = TokenDataset.open(tmp_path / "tokens", "train").sources[0].shards
    assert shard.tokens.tolist() == [0, 70_000, 2, 70_000]


def test_skipped_documents_are_counted(
    tmp_path: Path, corpus: Path, texts: list[str], data_config: MakeConfig
) -> None:
    (corpus / "001.txt").write_bytes(b"\xff")
    (corpus / "002.txt").write_bytes(b"")
    (corpus / "003.txt").write_bytes(b"")
    with pytest.raises(DataError, match=r"001.txt: invalid UTF-8"):
        prepare(data_config(corpus), tmp_path / "tokens")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["corpus"]

    bpe = TokenizerConfig(kind="bpe", vocab_size=300)  # which reads everything twice
    manifest = prepare(data_config(corpus, on_error="skip", tokenizer=bpe), tmp_path / "tokens")
    assert manifest.sources[0].skipped == {"empty": 2, "invalid UTF-8": 1}
    assert sum(part.documents for part in manifest.parts) == len(texts) - 3


def test_progress_reaches_the_end(tmp_path: Path, corpus: Path, data_config: MakeConfig) -> None:
    calls = collections.defaultdict(list)
    bpe = TokenizerConfig(kind="bpe", vocab_size=300)
    prepare(
        data_config(corpus, tokenizer=bpe),
        tmp_path / "tokens",
        progress=lambda activity, done, total: calls[activity].append((done, total)),
    )
    assert list(calls) == [f"learn tokens from {corpus}", f"encode {corpus}"]
    for steps in calls.values():
        done, totals = zip(*steps, strict=True)
        assert list(done) == sorted(done) and len(set(totals)) == 1
        assert (done[0], done[-1]) == (0, totals[0])


def test_finished_folder_is_reused(tmp_path: Path, corpus: Path, data_config: MakeConfig) -> None:
    config = data_config(corpus)
    manifest = prepare(config, tmp_path / "tokens")
    before = contents(tmp_path / "tokens")
    assert prepare(config, tmp_path / "tokens", progress=never) == manifest
    other_rows = dataclasses.replace(config, seq_len=64, batch_size=2)
    assert prepare(other_rows, tmp_path / "tokens", progress=never).config == other_rows
    prepare(config, tmp_path / "tokens", progress=never)
    assert contents(tmp_path / "tokens") == before
    # Prepared data doesn't need its source any more.
    shutil.rmtree(corpus)
    assert prepare(config, tmp_path / "tokens", progress=never) == manifest


def test_changed_weights_need_no_new_tokens(
    tmp_path: Path, corpus: Path, data_config: MakeConfig
) -> None:
    config = data_config(corpus)
    prepare(config, tmp_path / "tokens")
    source = dataclasses.replace(config.sources[0], weight=5.0)
    config = dataclasses.replace(config, sources=(source,))
    prepare(config, tmp_path / "tokens", progress=never)
    assert TokenDataset.open(tmp_path / "tokens", "train").sources[0].weight == 5.0


def test_folder_of_other_settings_is_an_error(
    tmp_path: Path, corpus: Path, data_config: MakeConfig
) -> None:
    prepare(data_config(corpus), tmp_path / "tokens")
    before = contents(tmp_path / "tokens")
    other = data_config(corpus, corpus / "001.txt", validation_fraction=0.3)
    with pytest.raises(DataError) as caught:
        prepare(other, tmp_path / "tokens", progress=never)
    assert "data.validation_fraction is 0.3, and was 0.2" in caught.value.why
    assert f"data.sources.1.path is '{corpus / '001.txt'}', and was None" in caught.value.why
    assert contents(tmp_path / "tokens") == before


def test_folder_of_changed_files_is_an_error(
    tmp_path: Path, corpus: Path, data_config: MakeConfig
) -> None:
    prepare(data_config(corpus), tmp_path / "tokens")
    (corpus / "new.txt").write_text("new")
    with pytest.raises(DataError, match=r"files of .*corpus have changed: 61 .*were 60"):
        prepare(data_config(corpus), tmp_path / "tokens", progress=never)
    (corpus / "new.txt").unlink()
    prepare(data_config(corpus), tmp_path / "tokens", progress=never)
    path = corpus / "000.txt"
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 1))
    with pytest.raises(DataError, match="have changed"):
        prepare(data_config(corpus), tmp_path / "tokens", progress=never)


def test_changed_tokenizer_file_is_an_error(
    tmp_path: Path, corpus: Path, texts: list[str], data_config: MakeConfig
) -> None:
    path = tmp_path / "t.json"
    Tokenizer.train(texts, 300).save(path)
    config = data_config(corpus, tokenizer=TokenizerConfig(kind="file", path=str(path)))
    prepare(config, tmp_path / "tokens")
    prepare(config, tmp_path / "tokens", progress=never)
    Tokenizer.train(texts, 301).save(path)
    with pytest.raises(DataError, match=r"t.json has changed"):
        prepare(config, tmp_path / "tokens", progress=never)


def test_occupied_and_impossible_places(
    tmp_path: Path, corpus: Path, data_config: MakeConfig
) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("x")
    with pytest.raises(DataError, match="mine is not empty"):
        prepare(data_config(corpus), tmp_path / "mine", progress=never)
    with pytest.raises(DataError, match=r"thesis.tex is not empty"):
        prepare(data_config(corpus), tmp_path / "mine" / "thesis.tex")
    with pytest.raises(DataError, match=r"preparing .* failed"):
        prepare(data_config(corpus), tmp_path / "mine" / "thesis.tex" / "deeper")
    assert contents(tmp_path / "mine") == {"thesis.tex": b"x"}
    (tmp_path / "empty").mkdir()
    prepare(data_config(corpus), tmp_path / "empty")
    verify(tmp_path / "empty")
    prepare(data_config(corpus), tmp_path / "new" / "deep")
    verify(tmp_path / "new" / "deep")


def test_nothing_left_to_train_on(tmp_path: Path, data_config: MakeConfig) -> None:
    folder = tmp_path / "texts"
    folder.mkdir()
    for name in "ab":
        (folder / f"{name}.txt").write_text(name)
    with pytest.raises(DataError, match=r"texts is left to train on\n.*0\.999"):
        prepare(data_config(folder, validation_fraction=0.9999), tmp_path / "tokens")
    assert not (tmp_path / "tokens").exists()


@pytest.mark.parametrize(
    ("text", "fraction", "train"),
    [
        ("abc\n" * 100, 0.25, "abc\n" * 75),
        ("abc\n" * 100, 0.2525, "abc\n" * 75),  # the line in which the cut would be stays whole
        ("abc\n" * 2, 0.999, "abc\n"),
        ("no lines", 0.5, "no lines"),
        ("abc\n" * 100, 0.0, "abc\n" * 100),
    ],
)
def test_the_end_of_an_only_document_is_held_out(
    tmp_path: Path, data_config: MakeConfig, text: str, fraction: float, train: str
) -> None:
    (tmp_path / "a.txt").write_text(text)
    config = data_config(tmp_path / "a.txt", validation_fraction=fraction)
    prepare(config, tmp_path / "tokens")
    assert documents(tmp_path / "tokens", "train") == [train]
    if rest := text.removeprefix(train):
        assert documents(tmp_path / "tokens", "validation") == [rest]
    else:
        assert not Manifest.load(tmp_path / "tokens").split("validation")


def test_killed_prepare_leaves_nothing_that_counts(
    tmp_path: Path, corpus: Path, data_config: MakeConfig
) -> None:
    script = """
import sys
from bitttt_jax.config import DataConfig, SourceConfig
from bitttt_jax.data.prepare import prepare

def stop_in_the_middle(activity, done, total):
    if done == total:
        print("reached", flush=True)
        sys.stdin.read()

prepare(
    DataConfig(sources=(SourceConfig(path=sys.argv[1]), SourceConfig(path=sys.argv[1]))),
    sys.argv[2], progress=stop_in_the_middle,
)
"""
    output = tmp_path / "out" / "tokens"
    command = [sys.executable, "-c", script, str(corpus), str(output)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "reached\n"
        process.kill()
    (left,) = output.parent.iterdir()
    assert left.name.startswith(".tokens.partial-") and list(left.iterdir())
    with pytest.raises(DataError, match="no prepared tokens"):
        Manifest.load(output)
    prepare(data_config(corpus), output)
    verify(output)
    assert list(output.parent.iterdir()) == [output]  # the leftovers are cleaned up


def test_interrupted_prepare_leaves_nothing(
    tmp_path: Path, corpus: Path, data_config: MakeConfig
) -> None:
    def interrupt(activity: str, done: int, total: int) -> None:
        if done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare(data_config(corpus), tmp_path / "tokens", progress=interrupt)
    assert list(tmp_path.iterdir()) == [corpus]


def test_two_prepares_at_once(tmp_path: Path, corpus: Path, data_config: MakeConfig) -> None:
    config = data_config(corpus)
    manifest = prepare(config, tmp_path / "first")

    def overtake(activity: str, done: int, total: int) -> None:
        if done == total:
            shutil.copytree(tmp_path / "first", tmp_path / "tokens", dirs_exist_ok=True)

    assert prepare(config, tmp_path / "tokens", progress=overtake) == manifest
    assert sorted(path.name for path in tmp_path.iterdir()) == ["corpus", "first", "tokens"]


def test_prepared_sources_are_referred_to(
    tmp_path: Path, corpus: Path, data_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    bpe = TokenizerConfig(kind="bpe", vocab_size=300)
    one = data_config(corpus, corpus / "001.txt", tokenizer=bpe)
    heavy = dataclasses.replace(one.sources[1], weight=3.0)
    prepare(
        dataclasses.replace(one, sources=(one.sources[0], heavy), validation_fraction=0.01),
        tmp_path / "a",
    )
    shards = SourceConfig(path=str(tmp_path / "a"), weight=2.0)
    text = SourceConfig(path=str(corpus / "002.txt"))
    config = DataConfig(sources=(shards, text), validation_fraction=0.0)
    manifest = prepare(config, tmp_path / "b")

    assert manifest.tokenizer_fingerprint == Manifest.load(tmp_path / "a").tokenizer_fingerprint
    weights = [(part.name, manifest.weight(part)) for part in manifest.split("train")]
    assert weights == [(str(corpus), 0.5), (heavy.path, 1.5), (text.path, 1.0)]
    assert sorted(path.name for path in (tmp_path / "b").glob("*.bin")) == ["01-train-00000.bin"]
    assert documents(tmp_path / "b", "train")[:-1] == documents(tmp_path / "a", "train")
    verify(tmp_path / "b")
    # Through two folders, the first one given relatively to a folder that is left later.
    monkeypatch.chdir(tmp_path)
    prepare(DataConfig(sources=(SourceConfig(path="b"),)), tmp_path / "c")
    monkeypatch.chdir(corpus)
    assert documents(tmp_path / "c", "train") == documents(tmp_path / "b", "train")

    shutil.rmtree(tmp_path / "a")
    with pytest.raises(DataError, match=r"a/00-train-00000.bin is damaged or missing"):
        TokenDataset.open(tmp_path / "b", "train")


def test_prepared_sources_must_agree_on_the_tokenizer(
    tmp_path: Path, corpus: Path, data_config: MakeConfig
) -> None:
    bpe = TokenizerConfig(kind="bpe", vocab_size=300)
    prepare(data_config(corpus), tmp_path / "bytes")
    prepare(data_config(corpus, tokenizer=bpe), tmp_path / "bpe")
    with pytest.raises(DataError, match="different tokenizers"):
        prepare(data_config(tmp_path / "bytes", tmp_path / "bpe"), tmp_path / "c")
    with pytest.raises(DataError, match=r"another tokenizer than data.tokenizer"):
        prepare(data_config(tmp_path / "bytes", tokenizer=bpe), tmp_path / "c")
    same = TokenizerConfig(kind="file", path=str(tmp_path / "bpe" / "tokenizer.json"))
    for tokenizer in (bpe, same):
        config = data_config(tmp_path / "bpe", tokenizer=tokenizer)
        prepare(config, tmp_path / f"ok-{tokenizer.kind}")


def test_missing_sources(tmp_path: Path, corpus: Path) -> None:
    for kind in ("auto", "shards", "huggingface"):
        config = DataConfig(sources=(SourceConfig(path=str(tmp_path / "gone"), kind=kind),))
        with pytest.raises(DataError, match="there is no file or folder"):
            prepare(config, tmp_path / "tokens")
    config = DataConfig(sources=(SourceConfig(path=str(corpus), kind="shards"),))
    with pytest.raises(DataError, match="holds no prepared tokens"):
        prepare(config, tmp_path / "tokens")
    with pytest.raises(ConfigError, match="no pattern"):
        prepare(DataConfig(sources=(SourceConfig(path=str(corpus), glob=""),)), tmp_path / "tokens")
