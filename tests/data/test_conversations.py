from __future__ import annotations

import collections
import json
from pathlib import Path
from typing import Any

import pytest

from bitttt_jax.config import SourceConfig
from bitttt_jax.data.conversations import is_conversation, read_conversation
from bitttt_jax.data.documents import Document, UnusableDocumentError
from bitttt_jax.data.sources import Source
from bitttt_jax.errors import DataError

QUESTION = {"role": "user", "content": "Why?"}
REPLY = {"role": "assistant", "content": "Because."}
MESSAGES = {"messages": [QUESTION, REPLY]}


def read(row: Any) -> Document:
    found = read_conversation(row, "x:1")
    assert isinstance(found, Document), found
    return found


def spoken(row: Any) -> str:
    return "|".join(f"{m['role']}:{m['content']}" for m in read(row).messages)


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"instruction": "Add", "input": "1, 2", "output": "3"}, "user:Add\n\n1, 2|assistant:3"),
        ({"instruction": "Hi", "input": " ", "output": "Ho"}, "user:Hi|assistant:Ho"),
        ({"instruction": "Hi", "input": None, "output": "Ho"}, "user:Hi|assistant:Ho"),
        (
            {"instruction": "Hi", "output": "Ho", "system": "Rhyme."},
            "system:Rhyme.|user:Hi|assistant:Ho",
        ),
        (
            {
                "id": 7,
                "conversations": [
                    {"from": "human", "value": "a"},
                    {"from": "gpt", "value": "b"},
                    {"from": "Human", "value": "c"},
                    {"from": "gpt", "value": "d"},
                ],
            },
            "user:a|assistant:b|user:c|assistant:d",
        ),
        (
            {"system": "S", "conversations": [{"from": "gpt", "value": "first"}]},
            "system:S|assistant:first",
        ),
        (
            {"conversations": [{"role": "user", "content": "a"}, {"role": "bot", "content": "b"}]},
            "user:a|assistant:b",
        ),
        (MESSAGES, "user:Why?|assistant:Because."),
        (
            {"messages": [{"role": "system", "content": ""}, QUESTION, REPLY]},
            "user:Why?|assistant:Because.",
        ),
        (
            {
                "messages": [
                    {"role": "developer", "content": "D"},
                    {"role": "user", "content": [{"type": "text", "text": "a"}, {"text": "b"}]},
                    {**REPLY, "weight": 1, "name": "x"},
                ]
            },
            "system:D|user:ab|assistant:Because.",
        ),
    ],
)
def test_formats(row: Any, expected: str) -> None:
    assert is_conversation(row)
    assert spoken(row) == expected


def test_the_text_is_what_is_said() -> None:
    assert read(MESSAGES).text == "Why?\n\nBecause."


@pytest.mark.parametrize(
    ("row", "reason", "why"),
    [
        ({}, "not a conversation", "its fields are none"),
        ({"instruction": "a", "text": "b"}, "not a conversation", "no 'output'; its fields are"),
        ({"messages": "Hi"}, "field 'messages' is no list", "a str"),
        ({"messages": []}, "no reply", ""),
        ({"messages": [QUESTION]}, "no reply", ""),
        ({"messages": ["Hi"]}, "a message is no object", "message 1 is a str"),
        (
            {"messages": [QUESTION, {"content": "x"}]},
            "a message of no known role",
            "message 2 has none",
        ),
        ({"messages": [{"role": "tool", "content": "x"}]}, "a message of no known role", "'tool'"),
        ({"messages": [{"role": ["user"], "content": "x"}]}, "a message of no known role", ""),
        ({"messages": [QUESTION, {"role": "assistant", "content": " \n"}]}, "an empty message", ""),
        (
            {"messages": [QUESTION, {"role": "assistant", "content": None}]},
            "a message is not text",
            "nothing",
        ),
        ({"messages": [QUESTION, {"role": "assistant"}]}, "a message is not text", "message 2"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
            "a message is not text",
            "",
        ),
        ({"messages": [QUESTION, {**REPLY, "weight": 0}]}, "a message with a weight", "weight 0"),
        (
            {"messages": [QUESTION, {"role": "system", "content": "x"}, REPLY]},
            "a system message after the first message",
            "",
        ),
        ({"instruction": "", "output": "x"}, "an empty message", "'instruction'"),
        ({"instruction": "x", "output": "  "}, "an empty message", "'output'"),
        ({"instruction": 3, "output": "x"}, "field 'instruction' is not text", "a int"),
        ({"instruction": "x", "output": ["y"]}, "field 'output' is not text", "a list"),
        ({**MESSAGES, "system": 1}, "field 'system' is not text", "a int"),
        (
            {"messages": [QUESTION, {"role": "assistant", "content": "\ud800"}]},
            "invalid Unicode",
            "",
        ),
    ],
)
def test_malformed_rows_say_what_is_wrong(row: Any, reason: str, why: str) -> None:
    found = read_conversation(row, "chat.jsonl:3")
    assert isinstance(found, UnusableDocumentError)
    assert found.reason == reason
    assert str(found).startswith(f"chat.jsonl:3: {reason}") and why in str(found)


# --- files ------------------------------------------------------------------------------------


def write(path: Path, rows: list[Any], form: str) -> Path:
    text = json.dumps(rows, indent=1) if form == "array" else "\n\n".join(map(json.dumps, rows))
    path.write_text(text, encoding="utf-8")
    return path


def documents(path: Path, on_error: Any = "fail", **settings: Any) -> list[Document]:
    source = Source.find(SourceConfig(path=str(path), **settings))
    return list(source.documents(on_error, collections.Counter()))


@pytest.mark.parametrize("form", ["array", "lines"])
@pytest.mark.parametrize("name", ["a.json", "a.jsonl", "a.ndjson"])
@pytest.mark.parametrize("kind", ["auto", "messages"])
def test_files_of_conversations(tmp_path: Path, form: str, name: str, kind: str) -> None:
    path = write(tmp_path / name, [MESSAGES, {"instruction": "a", "output": "b"}], form)
    found = documents(path, kind=kind)
    assert [len(document.messages) for document in found] == [2, 2]
    assert Source.find(SourceConfig(path=str(path), kind=kind)).has_conversations  # type: ignore[arg-type]
    places = ["element 1", "element 2"] if form == "array" else [":1", ":3"]
    assert [d.origin for d in found] == [
        f"{path}{' ' if form == 'array' else ''}{place}" for place in places
    ]


def test_of_a_folder_kind_messages_reads_files_of_json(tmp_path: Path) -> None:
    write(tmp_path / "a.json", [MESSAGES], "array")
    write(tmp_path / "b.jsonl", [MESSAGES], "lines")
    (tmp_path / "readme.txt").write_text("text")
    assert len(documents(tmp_path, kind="messages")) == 2
    # As before there were conversations, kind=auto reads no .json of a folder unless asked to.
    assert [bool(d.messages) for d in documents(tmp_path)] == [True, False]
    assert len(documents(tmp_path, glob="*.json")) == 1


def test_text_and_json_lines_of_text_are_no_conversations(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [{**MESSAGES, "text": "plain"}], "lines")
    (found,) = documents(path)
    assert (found.text, found.messages) == ("plain", ())
    (tmp_path / "b.json").write_text('{"a": [1]}')
    (found,) = documents(tmp_path / "b.json")
    assert (found.text, found.messages) == ('{"a": [1]}', ())
    row = json.dumps(MESSAGES)
    (tmp_path / "c.json").write_text(row)
    assert documents(tmp_path / "c.json", kind="text")[0].text == row
    for each in ("a.jsonl", "b.json"):
        assert not Source.find(SourceConfig(path=str(tmp_path / each))).has_conversations


def test_unusable_rows_stop_or_are_counted(tmp_path: Path) -> None:
    rows = [MESSAGES, {"text": "plain"}, 7, {"messages": [QUESTION]}, MESSAGES]
    path = write(tmp_path / "a.jsonl", rows, "lines")
    with pytest.raises(UnusableDocumentError, match=r"a\.jsonl:3: not a conversation"):
        documents(path)
    skipped: collections.Counter[str] = collections.Counter()
    found = list(Source.find(SourceConfig(path=str(path))).documents("skip", skipped))
    assert len(found) == 2
    assert skipped == {"not a conversation": 1, "not a JSON object": 1, "no reply": 1}


def test_nothing_usable(tmp_path: Path) -> None:
    path = write(tmp_path / "a.json", [{"messages": [QUESTION]}], "array")
    with pytest.raises(DataError, match=r"no usable document\n  left out: 1 no reply"):
        documents(path, on_error="skip")


def test_datasets_on_disk(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    rows = datasets.Dataset.from_list([{"messages": [QUESTION, REPLY]}])
    rows.save_to_disk(tmp_path / "set")
    for kind in ("auto", "messages"):
        (found,) = documents(tmp_path / "set", kind=kind)
        assert [dict(message) for message in found.messages] == [QUESTION, REPLY]
