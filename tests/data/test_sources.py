from __future__ import annotations

import collections
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from bitttt_jax.config import SourceConfig
from bitttt_jax.data.sources import Document, Source, UnusableDocumentError
from bitttt_jax.errors import ConfigError, DataError, ExitCode


def read(path: Path | str, **settings: Any) -> list[Document]:
    return list(find(path, **settings).documents("fail", collections.Counter()))


def find(path: Path | str, **settings: Any) -> Source:
    return Source.find(SourceConfig(path=str(path), **settings))


def test_text_files_are_documents(corpus: Path, texts: list[str]) -> None:
    documents = read(corpus)
    assert [document.text for document in documents] == texts
    assert documents[3].origin == str(corpus / "003.txt")
    assert sum(document.size for document in documents) == find(corpus).size


def test_text_keeps_line_ends_but_not_the_byte_order_mark(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfa\r\nb\r")
    assert [document.text for document in read(tmp_path / "a.txt")] == ["a\r\nb\r"]


def test_json_lines(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    rows = [{"text": "é\n", "body": "1"}, {"body": "2", "text": "b"}]
    path.write_text("\n\n".join(map(json.dumps, rows)))
    documents = read(path)
    assert [(d.text, d.origin) for d in documents] == [("é\n", f"{path}:1"), ("b", f"{path}:3")]
    assert [document.text for document in read(path, field="body")] == ["1", "2"]


def test_kind_decides_how_files_are_read(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text('{"text": "x"}')
    (tmp_path / "b.jsonl").write_text('{"text": "y"}\n')
    assert [document.text for document in read(tmp_path)] == ['{"text": "x"}', "y"]
    assert [document.text for document in read(tmp_path, kind="jsonl")] == ["x", "y"]
    texts = [document.text for document in read(tmp_path, kind="text")]
    assert texts == ['{"text": "x"}', '{"text": "y"}\n']


FAULTS = {
    "empty.txt": (b"", "empty"),
    "latin.txt": (b"caf\xe9", "invalid UTF-8"),
    "utf16.txt": ("hello".encode("utf-16-le"), "binary"),
    "empty.jsonl": (b"\n", "empty"),
    "broken.jsonl": (b'{"text": "ok"}\n{"text": "bro\n', "invalid JSON"),
    "deep.jsonl": (b"[" * 100_000 + b"\n", "invalid JSON"),
    "list.jsonl": (b'["text"]\n', "not a JSON object"),
    "missing.jsonl": (b'{"body": "x"}\n', "no field 'text'"),
    "number.jsonl": (b'{"text": 3}\n', "field 'text' is not text"),
    "surrogate.jsonl": (b'{"text": "\\ud800"}\n', "invalid Unicode"),
    "bytes.jsonl": (b'{"text": "\xff"}\n', "invalid UTF-8"),
    "blank.jsonl": (b'{"text": ""}\n', "empty"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_faulty_documents(tmp_path: Path, name: str) -> None:
    data, reason = FAULTS[name]
    path = tmp_path / name
    path.write_bytes(data)
    (tmp_path / "z.txt").write_text("good")

    with pytest.raises(UnusableDocumentError) as caught:
        read(tmp_path)
    line = {"empty.jsonl": "", "broken.jsonl": ":2"}.get(name, ":1" if "jsonl" in name else "")
    assert str(caught.value).startswith(f"{path}{line}: {reason}")
    assert "on_error=skip" in caught.value.fix
    assert caught.value.exit_code == ExitCode.DATA

    skipped: collections.Counter[str] = collections.Counter()
    documents = list(find(tmp_path).documents("skip", skipped))
    assert documents[-1].text == "good"
    assert skipped == {reason: 1}


def test_missing_field_names_those_there_are(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"body": "x", "id": 1}\n')
    with pytest.raises(DataError, match=r"its fields are 'body', 'id'\n.*--field"):
        read(tmp_path / "a.jsonl")


def test_a_source_without_usable_documents(tmp_path: Path) -> None:
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_bytes(b"\xff")
    source = find(tmp_path)
    with pytest.raises(DataError, match=r"no usable document\n  left out: 2 invalid UTF-8"):
        list(source.documents("skip", collections.Counter()))


def test_summary_sees_names_sizes_and_times(corpus: Path) -> None:
    before = find(corpus).summary()
    assert find(corpus).summary() == before
    first, second = corpus / "000.txt", corpus / "001.txt"
    first.rename(corpus / "0.txt")
    renamed = find(corpus).summary()
    second.write_text("a" * second.stat().st_size)
    rewritten = find(corpus).summary()
    assert len({before.sha256, renamed.sha256, rewritten.sha256}) == 3


def test_stdlib() -> None:
    documents = find("python-stdlib").documents("fail", collections.Counter())
    assert next(documents).text
    with pytest.raises(ConfigError, match="python-stdlib is text"):
        find("python-stdlib", kind="jsonl")


def test_huggingface_dataset(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    rows = datasets.Dataset.from_dict({"text": ["a", "é", None], "id": [1, 2, 3]})
    rows.save_to_disk(str(tmp_path / "one"))
    datasets.DatasetDict({"train": rows, "test": rows}).save_to_disk(str(tmp_path / "splits"))
    datasets.DatasetDict({"dev": rows}).save_to_disk(str(tmp_path / "dev"))

    skipped: collections.Counter[str] = collections.Counter()
    for name in ("one", "splits"):
        documents = list(find(tmp_path / name).documents("skip", skipped))
        assert [document.text for document in documents] == ["a", "é"]
    assert skipped == {"field 'text' is not text": 2}
    with pytest.raises(DataError, match=r"one row 2: field 'text' is not text\n.*NoneType"):
        read(tmp_path / "one")
    with pytest.raises(DataError, match=r"one row 0: no field 'body'\n.*'text', 'id'"):
        read(tmp_path / "one", field="body")
    with pytest.raises(DataError, match=r"no split named train\n.*dev"):
        read(tmp_path / "dev")
    arrow = next((tmp_path / "one").glob("*.arrow"))
    arrow.write_bytes(arrow.read_bytes()[:100])
    with pytest.raises(DataError, match="can't read the dataset"):
        read(tmp_path / "one")


def test_huggingface_extra_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "dataset_info.json").write_text("{}")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ConfigError, match=r'pip install "bitttt-jax\[hf\]"'):
        read(tmp_path)


@pytest.mark.parametrize("kind", ["auto", "text", "messages", "huggingface", "shards"])
def test_addresses_are_refused_early(kind: Any) -> None:
    with pytest.raises(ConfigError, match=r"gs://bucket/text is no path.*\n.*\n.*bucket mounted"):
        Source.find(SourceConfig(path="gs://bucket/text", kind=kind))
