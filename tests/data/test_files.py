from __future__ import annotations

import sysconfig
from pathlib import Path

import pytest

from bitttt_jax.data import files
from bitttt_jax.errors import ConfigError, DataError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    names = "b.txt a/z.md a.txt .hidden.txt .git/c.txt image.png a/Code.PY data.jsonl LICENSE"
    for name in names.split():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(name)
    return tmp_path


def names(root: Path, found: tuple[Path, ...]) -> list[str]:
    return [path.relative_to(root).as_posix() for path in found]


@pytest.mark.parametrize(
    ("glob", "expected"),
    [
        (files.DEFAULT_GLOB, ["a.txt", "a/Code.PY", "a/z.md", "b.txt", "data.jsonl"]),
        ("**/*.txt", ["a.txt", "b.txt"]),
        ("*", ["LICENSE", "a.txt", "b.txt", "data.jsonl", "image.png"]),
        (".git/*", [".git/c.txt"]),
    ],
)
def test_files_of_a_folder(folder: Path, glob: str, expected: list[str]) -> None:
    root, found = files.find(str(folder), glob)
    assert root == folder
    assert names(folder, found) == expected


def test_a_file_is_taken_whatever_its_name(folder: Path) -> None:
    path = folder / "LICENSE"
    assert files.find(str(path), files.DEFAULT_GLOB) == (path, (path,))


def test_wildcards_in_the_path(folder: Path) -> None:
    root, found = files.find(f"{folder}/a*/*.md", files.DEFAULT_GLOB)
    assert names(folder, found) == ["a/z.md"] and root == folder
    with pytest.raises(ConfigError, match="wildcards in both"):
        files.find(f"{folder}/*.txt", "*.md")
    with pytest.raises(DataError, match="no text files"):
        files.find(f"{folder}/*.none", files.DEFAULT_GLOB)


def test_a_name_with_brackets_is_a_name(tmp_path: Path) -> None:
    path = tmp_path / "notes [1].txt"
    path.write_text("x")
    assert files.find(str(path), files.DEFAULT_GLOB)[1] == (path,)


def test_nothing_there(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(files.MissingSourceError, match=r"nowhere"):
        files.find(str(folder / "nowhere"), files.DEFAULT_GLOB)
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.png").write_text("")
    with pytest.raises(DataError, match=r"no text files in .*\n.*1 \.png\n.*glob"):
        files.find(str(tmp_path / "images"), files.DEFAULT_GLOB)
    with pytest.raises(
        ConfigError, match=r"glob=/absolute/\* is an absolute path\n.*names files below"
    ):
        files.find(str(folder), "/absolute/*")
    for glob in ("", "a**b"):
        with pytest.raises(ConfigError, match="is no pattern"):
            files.find(str(folder), glob)


def test_stdlib_has_modules_and_no_tests() -> None:
    root, found = files.find_stdlib()
    listed = names(root, found)
    assert str(root) == sysconfig.get_paths()["stdlib"]
    assert {"ast.py", "json/decoder.py", "asyncio/events.py"} <= set(listed)
    assert not [
        n for n in listed if "site-packages" in n or "/tests/" in n or n.startswith("test/")
    ]
    assert all(path.stat().st_size for path in found)
    for path in found:
        path.read_bytes().decode()  # the default source must never be refused
