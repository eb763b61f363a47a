from __future__ import annotations

from pathlib import Path

import pytest

from bitttt_jax.commands.batch_items import (
    Item,
    ItemError,
    Message,
    prompt_of,
    read_items,
    settings_of,
)
from bitttt_jax.errors import DataError


def items(folder: Path, name: str, content: bytes) -> list[Item]:
    (folder / name).write_bytes(content)
    return read_items(folder / name, "prompt")


def test_lines_of_text(tmp_path: Path):
    found = items(tmp_path, "a.txt", b"\xef\xbb\xbfone\r\n\n  \ntw\xc3\xb6\nbad \xff\nlast")
    assert [(item.id, item.fields.get("prompt")) for item in found] == [
        ("1", "one"),
        ("4", "twö"),
        ("5", None),
        ("6", "last"),
    ]
    assert found[2].error == "not UTF-8 at byte 4 of its line"


def test_files_of_a_folder(tmp_path: Path):
    (tmp_path / "b.txt").write_text("second\nfile\n")
    (tmp_path / "a.txt").write_text("first")
    (tmp_path / "c.md").write_text("no")
    found = read_items(tmp_path, "prompt")
    assert [(item.id, item.fields["prompt"]) for item in found] == [
        ("a.txt", "first"),
        ("b.txt", "second\nfile\n"),
    ]


def test_json_lines(tmp_path: Path):
    lines = b'{"id": "x", "prompt": "a"}\n\n"b"\n{"prompt": \n3\n{"id": [], "prompt": "c"}\n'
    found = items(tmp_path, "a.jsonl", lines + b"[" * 100_000)
    assert [item.id for item in found] == ["x", "3", "4", "5", "6", "7"]
    assert [item.fields.get("prompt") for item in found[:2]] == ["a", "b"]
    errors = [item.error for item in found[2:]]
    starts = ["its line isn't JSON", "it is neither", "its id is []", "its"]
    for error, start in zip(errors, starts, strict=True):
        assert error.startswith(start) and error


def test_json_and_csv_say_the_same(tmp_path: Path):
    of_json = items(tmp_path, "a.json", b'[{"id": "1", "prompt": "a\\nb", "top_k": "3"}, "c"]')
    of_csv = items(tmp_path, "a.csv", b'id,prompt,top_k\r\n1,"a\nb",3\r\n2,c,\r\n')
    assert [item.id for item in of_json] == [item.id for item in of_csv] == ["1", "2"]
    for found in (of_json, of_csv):
        assert [prompt_of(item, "prompt", "") for item in found] == ["a\nb", "c"]
        assert [settings_of(item).top_k for item in found] == [3, None]
    short = items(tmp_path, "b.csv", b"id,prompt\n1\n2,b\n")
    assert short[0].error == "its row has 1 cells, and there are 2 names" and not short[1].error


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", b'{"prompt": "a"}', "isn't a list of items"),
        ("a.json", b"[", "isn't JSON"),
        ("a.json", b"[" * 100_000, "isn't JSON"),
        ("a.json", b"\xff", "isn't JSON"),
        ("a.csv", b"", "row of different names"),
        ("a.csv", b"a,a\n1,2\n", "row of different names"),
        ("a.csv", b'prompt\n"a', "isn't CSV"),
        ("a.csv", b"prompt\n\xff", "isn't UTF-8"),
        ("a.parquet", b"", "has an ending that says nothing"),
        ("a.jsonl", b'{"id": 1}\n{"id": "1"}', "two items with the id '1'"),
    ],
)
def test_files_that_are_refused(tmp_path: Path, name: str, content: bytes, message: str):
    with pytest.raises(DataError, match=message):
        items(tmp_path, name, content)


def test_files_that_are_not_there(tmp_path: Path):
    with pytest.raises(DataError, match=r"can't be read"):
        read_items(tmp_path / "a.txt", "prompt")
    with pytest.raises(DataError, match=r"holds no \.txt files"):
        read_items(tmp_path, "prompt")


def test_templates():
    item = Item("1", {"prompt": "a {name}", "name": "b", "count": 3, "list": []})
    assert prompt_of(item, "prompt", "<{name}|{prompt}|{count}> {} {x y} {{}}") == (
        "<b|a {name}|3> {} {x y} {{}}"
    )
    for template, message in (
        ("{nam}", "did you mean name"),
        ("{list}", "isn't a text"),
        ("{q}", "it has prompt, name"),
    ):
        with pytest.raises(ItemError, match=message):
            prompt_of(item, "prompt", template)


def test_settings():
    fields = {"top_p": 1, "seed": "7", "stop": "a", "temperature": None, "min_p": ""}
    found = settings_of(Item("1", fields)).model_dump(exclude_none=True)
    assert found == {"top_p": 1.0, "seed": 7, "stop": ("a",)}
    messages = [{"role": "user", "content": "a", "name": "ignored"}]
    assert settings_of(Item("1", {"messages": messages})).messages == [
        Message(role="user", content="a")
    ]
    for fields in (
        {"top_k": 1.5},
        {"top_k": "x"},
        {"stop": [3]},
        {"messages": "a"},
        {"messages": [{"role": "robot", "content": "a"}]},
        {"messages": [{"role": "user"}]},
    ):
        with pytest.raises(ItemError, match=next(iter(fields))):
            settings_of(Item("1", fields))
