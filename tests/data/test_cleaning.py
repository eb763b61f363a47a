from __future__ import annotations

import collections
import unicodedata
from pathlib import Path
from typing import Any

import pytest

from bitttt_jax.config import CleanConfig, DataConfig, SourceConfig
from bitttt_jax.data.cleaning import ALL, Cleaner, clean
from bitttt_jax.data.documents import Document
from bitttt_jax.data.prepare import prepare
from bitttt_jax.data.shards import load_tokenizer
from bitttt_jax.errors import ConfigError, DataError
from tests.data.test_prepare import documents

NASTY = "Cafe\u0301\r\nn\u0303  \t\n\n \n\n\nx\x00\x07\x85y\ufeff\rz \u3000"


@pytest.mark.parametrize(
    ("config", "text", "expected", "changes"),
    [
        (CleanConfig(), NASTY, NASTY, ()),
        (CleanConfig(unicode=True), "e\u0301 \ufb01 \u212b", "é \ufb01 Å", ("unicode",)),
        (CleanConfig(unicode=True), "é", "é", ()),
        (CleanConfig(control=True), "a\r\nb\rc\x0c\x1b\x7f\x85d\te", "a\nb\nc\nd\te", ("control",)),
        (CleanConfig(control=True), "a\n\tb é 日本\u200d", "a\n\tb é 日本\u200d", ()),
        (
            CleanConfig(whitespace=True),
            "  a \t\n\n\n\n  b\u3000\n\nc\n",
            "  a\n\n  b\n\nc\n",
            ("whitespace",),
        ),
        (CleanConfig(whitespace=True), "a\n\nb\n", "a\n\nb\n", ()),
        (ALL, NASTY, "Café\nñ\n\nx\ny\nz", ("unicode", "control", "whitespace")),
    ],
)
def test_changes(config: CleanConfig, text: str, expected: str, changes: tuple[str, ...]) -> None:
    found = clean(text, config)
    assert (found.text, found.changes, found.removed) == (expected, changes, "")
    assert clean(found.text, config).changes == ()  # nothing is left to be changed


def test_against_unicodedata() -> None:
    text = "".join(chr(code) for code in range(0x20, 0x3000) if not 0xD800 <= code < 0xE000)
    expected = unicodedata.normalize("NFC", text)
    assert clean(text, CleanConfig(unicode=True)).text == expected
    kept = clean(text, CleanConfig(control=True)).text
    lost = {unicodedata.category(c) for c in set(text) - set(kept)}
    assert lost == {"Cc"} and not any(unicodedata.category(c) == "Cc" for c in kept if c != "\n")


@pytest.mark.parametrize(
    ("config", "text", "removed"),
    [
        (CleanConfig(min_characters=3), "ab", "under 3 characters"),
        (CleanConfig(min_characters=3), "abc", ""),
        (CleanConfig(min_characters=3, whitespace=True), "ab     ", "under 3 characters"),
        (CleanConfig(control=True), "\x07\x08", "empty after cleaning"),
        (CleanConfig(max_repeated_lines=0.5), "a\na\na\nb", ""),
        (CleanConfig(max_repeated_lines=0.4), "a\n a\n\n\na\nb", "repeated lines"),
        (CleanConfig(max_repeated_lines=0.0), "a\nb", ""),
    ],
)
def test_what_is_left_out(config: CleanConfig, text: str, removed: str) -> None:
    assert clean(text, config).removed == removed


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"min_characters": -1}, r"clean\.min_characters must not be negative, got -1"),
        ({"max_repeated_lines": 1.5}, r"clean\.max_repeated_lines must be in \[0, 1\], got 1\.5"),
    ],
)
def test_settings_that_mean_nothing(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        CleanConfig(**settings)


def run(config: CleanConfig, *documents: Document) -> tuple[list[str], Any, Any]:
    skipped: collections.Counter[str] = collections.Counter()
    changed: collections.Counter[str] = collections.Counter()
    found = Cleaner(config).documents(iter(documents), skipped, changed)
    return [document.text for document in found], dict(skipped), dict(changed)


def text(content: str) -> Document:
    return Document(content, "x", len(content))


def chat(*contents: str) -> Document:
    messages = tuple({"role": "user", "content": content} for content in contents)
    return Document("\n\n".join(contents), "x", 0, messages)


def test_duplicates_are_found_after_cleaning_and_across_sources() -> None:
    cleaner = Cleaner(ALL)
    counters = [collections.Counter[str]() for _ in range(2)]
    first = list(cleaner.documents(iter([text("a "), text("b"), text("a")]), *counters))
    second = list(cleaner.documents(iter([text("b\n\n\n\n"), text("b")]), *counters))
    assert [d.text for d in first] == ["a", "b"] and [d.text for d in second] == ["b\n\n"]
    assert counters == [{"duplicate": 2}, {"whitespace": 2}]


def test_what_is_left_out_is_no_earlier_document() -> None:
    config = CleanConfig(duplicates=True, min_characters=2)
    assert run(config, text("a"), text("a"), text("ab"), text("ab")) == (
        ["ab"],
        {"under 2 characters": 2, "duplicate": 1},
        {},
    )


def test_messages_are_cleaned_one_by_one() -> None:
    document, result = Cleaner(ALL)(chat("a ", "b\r\nc"))
    assert [message["content"] for message in document.messages] == ["a", "b\nc"]
    assert (document.text, result.changes) == ("a\n\nb\nc", ("control", "whitespace"))
    assert Cleaner(ALL)(chat("a", "\x07"))[1].removed == "empty after cleaning"
    config = CleanConfig(min_characters=5)  # of the whole conversation
    assert [Cleaner(config)(chat("a", x))[1].removed != "" for x in ("b", "bc")] == [True, False]


def test_nothing_left() -> None:
    with pytest.raises(DataError, match=r"leaves no document of a source\n.*1 under 9 characters"):
        run(CleanConfig(min_characters=9), text("a"))


def test_prepared_folders_hold_what_was_cleaned_and_count_it(tmp_path: Path) -> None:
    folder = tmp_path / "text"
    folder.mkdir()
    for name, content in {"a": "one \n", "b": "two", "c": "one\n", "d": "x"}.items():
        (folder / f"{name}.txt").write_text(content, "utf-8")
    clean_config = CleanConfig(whitespace=True, duplicates=True, min_characters=2)
    config = DataConfig(
        (SourceConfig(path=str(folder)),), clean=clean_config, validation_fraction=0.0
    )
    manifest = prepare(config, tmp_path / "tokens")
    assert documents(tmp_path / "tokens", "train") == ["one\n", "two"]
    (source,) = manifest.sources
    assert source.skipped == {"duplicate": 1, "under 2 characters": 1}
    assert source.cleaned == {"whitespace": 1}
    assert load_tokenizer(tmp_path / "tokens").vocab_size == 257
    with pytest.raises(DataError, match=r"data\.clean\.duplicates is False, and was True"):
        prepare(
            DataConfig((SourceConfig(path=str(folder)),), validation_fraction=0.0),
            tmp_path / "tokens",
        )
