"""Which files a path and a glob mean."""

from __future__ import annotations

import collections
import sysconfig
from pathlib import Path

from bitttt_jax.errors import ConfigError, DataError

DEFAULT_GLOB = "**/*"

# Read from a folder unless a glob says otherwise: prose, JSON lines, program sources.
_TEXT_NAMES = """
    .txt .text .md .markdown .rst .tex .org .adoc .html .htm .jsonl .ndjson .yaml .yml .toml .ini
    .py .pyi .pyx .c .h .cc .cpp .cxx .hh .hpp .cu .cuh .m .mm .rs .go .java .kt .kts .scala .cs
    .fs .vb .swift .dart .js .mjs .cjs .jsx .ts .tsx .css .scss .vue .php .rb .pl .pm .lua .r .jl
    .hs .ml .mli .ex .exs .erl .clj .cljs .lisp .scm .el .vim .f .f90 .f95 .asm .s .v .sv .vhd
    .zig .nim .sh .bash .zsh .fish .ps1 .bat .sql .proto .thrift .cmake .mk .gradle .tf .nix .cfg
"""
TEXT_SUFFIXES = frozenset(_TEXT_NAMES.split())
"""Of the files that are read of a folder."""
_NOT_STDLIB = frozenset(
    {"site-packages", "dist-packages", "test", "tests", "idle_test", "lib2to3", "__pycache__"}
)
_WILDCARDS = frozenset("*?[")


class MissingSourceError(DataError):
    """Nothing is at the path of a source."""


def find(
    path: str, glob: str, suffixes: frozenset[str] = TEXT_SUFFIXES
) -> tuple[Path, tuple[Path, ...]]:
    """Finds the files of a source of text or JSON.

    Args:
      path: a file, a folder, or a path with wildcards.
      glob: which files of a folder, relative to it. The default takes files with one of the
        suffixes; any other glob takes what it matches. Names that start with a dot are left out
        unless the glob asks for them by a part that starts with a dot.
      suffixes: of the files that the default takes.

    Returns:
      The file or folder, and its files, sorted by their path below it.

    Raises:
      MissingSourceError: nothing is there.
      DataError: nothing is left of what is there.
      ConfigError: a malformed or absolute glob, or wildcards in both.
    """
    if Path(glob).is_absolute():
        raise ConfigError(
            f"data.sources.glob={glob} is an absolute path",
            f"it names files below data.sources.path={path}",
            f"data.sources.path={glob} (--source) without a glob",
        )
    root = Path(path).expanduser()
    if not root.exists() and _WILDCARDS & set(path):
        if glob != DEFAULT_GLOB:
            raise ConfigError(f"wildcards in both data.sources.path={path} and glob={glob}")
        first = next(i for i, part in enumerate(root.parts) if _WILDCARDS & set(part))
        root, glob = Path(*root.parts[:first]), str(Path(*root.parts[first:]))
    if root.is_file():
        return root, (root,)
    require(root)
    try:
        matches = [match for match in root.glob(glob) if match.is_file()]
    except ValueError as error:
        raise ConfigError(f"data.sources.glob={glob!r} is no pattern", str(error)) from None
    found = [match for match in matches if _wanted(match.relative_to(root), glob, suffixes)]
    if not found:
        raise _nothing_found(path, glob, matches)
    return root, _sorted(root, found)


def refuse_remote(path: str) -> None:
    """Raises ConfigError for an address such as gs://bucket/text: only file systems are read."""
    scheme, is_address, rest = path.partition("://")
    if is_address:
        raise ConfigError(
            f"data.sources.path={path} is no path of a file system",
            f"text isn't read through {scheme}://",
            f"copying it, or a file system that has {rest.partition('/')[0]} mounted",
        )


def find_all(root: Path) -> tuple[Path, ...]:
    """All files below a folder, sorted; raises MissingSourceError without one."""
    require(root)
    return _sorted(root, [path for path in root.rglob("*") if path.is_file()])


def require(root: Path) -> None:
    """Raises MissingSourceError if nothing is there."""
    if not root.exists():
        raise MissingSourceError(
            f"there is no file or folder {root}",
            fix="another data.sources.path (--source); relative ones start in the current folder",
        )


def find_stdlib() -> tuple[Path, tuple[Path, ...]]:
    """The running Python's library folder and its non-empty .py files, without any tests."""
    root = Path(sysconfig.get_paths()["stdlib"])
    found = [
        path
        for path in root.rglob("*.py")
        if _NOT_STDLIB.isdisjoint(path.relative_to(root).parts) and path.stat().st_size
    ]
    if not found:
        raise MissingSourceError(
            f"this Python has no sources of its standard library in {root}",
            fix="a data.sources.path (--source) of your own",
        )
    return root, _sorted(root, found)


def _wanted(name: Path, glob: str, suffixes: frozenset[str]) -> bool:
    hidden = any(part.startswith(".") for part in name.parts)
    if hidden and not any(part.startswith(".") for part in Path(glob).parts):
        return False
    return glob != DEFAULT_GLOB or name.suffix.lower() in suffixes


def _nothing_found(path: str, glob: str, matches: list[Path]) -> DataError:
    suffixes = collections.Counter(match.suffix or "no suffix" for match in matches)
    others = ", ".join(f"{count} {suffix}" for suffix, count in suffixes.most_common(5))
    return DataError(
        f"there are no text files in {path}",
        f"its files are {others}" if matches else f"nothing matches {glob}",
        "a data.sources.glob (--glob) such as '**/*.txt' that names the files to read",
    )


def _sorted(root: Path, paths: list[Path]) -> tuple[Path, ...]:
    return tuple(sorted(paths, key=lambda path: path.relative_to(root).as_posix()))
